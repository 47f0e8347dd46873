"""Settings and the conversion of the small model."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from tokenizers import Tokenizer

from engine.protocol import EngineError
from engine.vllm.config import VllmConfig
from engine.vllm.model import MANIFEST, NEEDED, check_model, ensure_model


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"max_num_batched_tokens": 8, "max_num_seqs": 16}, "max_num_seqs"),
        ({"dtype": "int8"}, "int8"),
        ({"max_model_len": 0}, "max_model_len"),
        ({"kv_cache_gib": 0}, "kv_cache_gib"),
    ],
)
def test_settings_that_vllm_would_choke_on_are_refused(fields: dict[str, object], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        VllmConfig(Path("model"), **fields)  # type: ignore[arg-type]


def test_the_model_folder_is_whole_and_made_once(model_folder: Path) -> None:
    before = (model_folder / "model.safetensors").stat()
    assert check_model(model_folder) == ""
    assert ensure_model(model_folder) == model_folder
    assert (model_folder / "model.safetensors").stat() == before
    with safe_open(model_folder / "model.safetensors", "pt") as weights:
        assert {weights.get_tensor(name).dtype for name in weights.keys()} == {torch.float16}  # noqa: SIM118
    assert "{% for message in messages %}" in (model_folder / "chat_template.jinja").read_text()


def test_damage_is_found(tmp_path: Path) -> None:
    """On a folder of tiny files with a true manifest."""
    digests = {}
    for name in NEEDED:
        (tmp_path / name).write_text(f"content of {name}")
        digests[name] = hashlib.sha256((tmp_path / name).read_bytes()).hexdigest()
    manifest = {"version": 1, "sha256": digests}
    (tmp_path / MANIFEST).write_text(json.dumps(manifest))
    assert check_model(tmp_path) == ""
    (tmp_path / "config.json").write_text("changed")
    assert "config.json" in check_model(tmp_path)
    (tmp_path / "config.json").unlink()
    assert "missing" in check_model(tmp_path)
    (tmp_path / MANIFEST).write_text(json.dumps({"version": 0, "sha256": digests}))
    assert "version" in check_model(tmp_path)
    (tmp_path / MANIFEST).write_text("{")
    assert MANIFEST in check_model(tmp_path)


def test_a_folder_of_something_else_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("ten years of work")
    with pytest.raises(EngineError, match="not made by"):
        ensure_model(tmp_path)
    assert (tmp_path / "thesis.txt").read_text() == "ten years of work"


@pytest.fixture(scope="module")
def tokenizer(model_folder: Path) -> Tokenizer:
    """Tokenizer of the converted model."""
    return Tokenizer.from_file(str(model_folder / "tokenizer.json"))


@settings(deadline=None)
@given(text=st.text(st.characters(codec="utf-8", exclude_categories=["Cs", "Co", "Cn", "Cc"]), max_size=60))
def test_the_tokenizer_gives_back_every_text(tokenizer: Tokenizer, text: str) -> None:
    """Of assigned characters; the vocabulary lacks some control characters and first bytes of empty planes."""
    assert tokenizer.decode(tokenizer.encode(text).ids, skip_special_tokens=False) == text


def test_digits_are_tokens_of_their_own(tokenizer: Tokenizer) -> None:
    """As in the model's training; the file's converter alone would merge them."""
    assert tokenizer.encode("12345").tokens == ["1", "2", "3", "4", "5"]
