"""docs/api.md says what is there: its commands run, and every field and status is in it."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Callable
from pathlib import Path

import httpx
import pytest

from services.controller.http.errors import _STATUS
from services.controller.http.schema import ChatRequest, CompletionRequest, Generation, SloFields
from services.controller.tokenizer import Catalog, ModelTokenizer
from tests.services.controller.http.conftest import CHATML, write_folder
from tests.services.controller.http.echo import EchoGateway

TEXT = (Path(__file__).parents[4] / "docs" / "api.md").read_text()
COMMANDS = re.findall(r"^    (curl .*?\n    }')$", TEXT, flags=re.DOTALL | re.MULTILINE)


@pytest.mark.parametrize("command", COMMANDS)
def test_commands_run(command: str, serve: Callable[..., str], tmp_path: Path) -> None:
    model = ModelTokenizer("smollm2-135m-instruct", write_folder(tmp_path / "model", CHATML))
    gateway = EchoGateway(Catalog([model]), reply=lambda call: "fine")
    url = serve(gateway)
    words = shlex.split(command)
    assert words[0] == "curl"
    options = dict(zip(words[2::2], words[3::2], strict=True))
    headers = {"content-type": "application/x-www-form-urlencoded"}  # what curl -d sends
    if "-H" in options:
        name, _, value = options.pop("-H").partition(": ")
        headers[name] = value
    body = options.pop("-d")
    assert not options
    answer = httpx.post(words[1].replace("localhost:8000", url), content=body, headers=headers)
    assert answer.status_code == 200, answer.text
    first = answer.text.splitlines()[0].removeprefix("data: ")
    assert json.loads(first)["slo"]["admission"] == "standard"


def test_there_are_commands() -> None:
    assert len(COMMANDS) == TEXT.count("    curl ") == 3


@pytest.mark.parametrize("model", [Generation, ChatRequest, CompletionRequest])
def test_every_field_is_described(model: type[Generation]) -> None:
    missing = [name for name in model.model_fields if f"`{name}`" not in TEXT and f"`{name}." not in TEXT]
    assert missing == []


def test_every_slo_field_is_described() -> None:
    names = [field.alias or name for name, field in SloFields.model_fields.items()]
    assert [name for name in names if f"`slo.{name}`" not in TEXT] == []


def test_every_status_that_clients_meet_is_described() -> None:
    same_as_others = {"OUT_OF_RANGE", "FAILED_PRECONDITION", "ABORTED", "UNIMPLEMENTED"}
    for code, (status, _) in _STATUS.items():
        if code not in same_as_others:
            assert f"| {status} | `{code.lower()}` |" in TEXT
