from __future__ import annotations

from pathlib import Path

import pytest

from services.controller.fit import why_unfit, why_unintelligible
from services.controller.tokenizer import ModelTokenizer
from tests.services.controller.http.conftest import CHATML, WITH_TOOLS, write_folder
from tests.services.controller.peer import info


@pytest.fixture
def model(tmp_path: Path) -> ModelTokenizer:
    return ModelTokenizer("tiny", write_folder(tmp_path / "model", CHATML))


def test_a_worker_with_the_same_model_folder_fits(model: ModelTokenizer) -> None:
    worker = info(tokenizer_hash=model.hash)
    assert why_unintelligible(worker) == ""
    assert why_unfit({"tiny": model}, worker) == ""


def test_another_model_is_named_with_those_that_are_known(model: ModelTokenizer) -> None:
    why = why_unfit({"tiny": model}, info(model="large", tokenizer_hash=model.hash))
    assert why == "worker peer serves model 'large', this controller knows tiny"


def test_another_tokenizer_under_the_same_name_is_noticed(model: ModelTokenizer, tmp_path: Path) -> None:
    other = ModelTokenizer("tiny", write_folder(tmp_path / "other", WITH_TOOLS))
    assert other.hash != model.hash
    why = why_unfit({"tiny": model}, info(tokenizer_hash=other.hash))
    assert "another tokenizer for 'tiny'" in why
    assert "the same model folder" in why
    assert "(none" in why_unfit({"tiny": model}, info(tokenizer_hash=""))


def test_another_version_of_the_worker_api_is_named() -> None:
    assert "version 2 of the worker API, this controller version 1" in why_unintelligible(info(proto_version=2))
