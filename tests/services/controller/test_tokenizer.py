from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from services.controller.chat_template import ChatTemplate, TemplateError
from services.controller.tokenizer import Catalog, ModelFolderError, ModelTokenizer, Thinking
from tests.services.controller.http.conftest import CHATML, WITH_TOOLS, write_folder

TOOL = {"type": "function", "function": {"name": "add", "parameters": {"type": "object"}}}


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> ModelTokenizer:
    return ModelTokenizer("tiny", write_folder(tmp_path_factory.mktemp("tokenizer") / "tiny", CHATML))


def test_needs_no_torch_and_no_transformers() -> None:
    code = (
        "import sys, services.controller.http.app, services.controller.tokenizer;"
        "print([m for m in ('torch', 'transformers', 'vllm', 'numba') if m in sys.modules])"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert out.stdout.strip() == "[]"


@settings(max_examples=200, deadline=None)
@given(text=st.text(st.characters(exclude_categories=["Cs"]), max_size=60))
def test_text_survives_the_round_trip(tiny: ModelTokenizer, text: str) -> None:
    ids = tiny.encode(text)
    assert tiny.decode(ids, skip_special_tokens=False) == text
    assert b"".join(tiny.token_bytes(token_id) for token_id in ids) == text.encode()


def test_truncation_stored_in_the_folder_is_not_applied(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "cut", CHATML)
    description = json.loads((folder / "tokenizer.json").read_text())
    description["truncation"] = {"direction": "Right", "max_length": 4, "strategy": "LongestFirst", "stride": 0}
    (folder / "tokenizer.json").write_text(json.dumps(description))
    assert len(ModelTokenizer("cut", folder).encode("x" * 100)) == 100


def test_template_uses_special_tokens_and_markers_become_single_tokens(tiny: ModelTokenizer) -> None:
    text = tiny.render_chat([{"role": "user", "content": "hi"}])
    assert text == "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n"
    ids = tiny.apply_chat_template([{"role": "user", "content": "hi"}])
    assert ids[0] == tiny.token_id("<|im_start|>")
    assert ids.count(tiny.token_id("<|im_end|>") or -1) == 1
    assert tiny.token_id("no such token") is None


@pytest.mark.parametrize(
    ("prompt", "when", "thinks"),
    [
        ("question <think>\n", "prompt", True),
        ("question <think>\n\n</think>\n\n", "prompt", False),
        ("question", "prompt", False),
        ("question", "always", True),
        ("question <think>\n\n</think>\n\n", "always", False),
        ("question <think>\n", "never", False),
    ],
)
def test_thinking_stage_is_read_from_the_prompt(tmp_path: Path, prompt: str, when: str, thinks: bool) -> None:
    model = ModelTokenizer("m", write_folder(tmp_path / "m", None), Thinking(when=when))  # type: ignore[arg-type]
    assert model.thinks(model.encode(prompt)) is thinks


def test_marker_that_is_not_one_token_is_refused_where_it_is_needed(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "m", CHATML)
    with pytest.raises(ModelFolderError, match="marker that ends thinking"):
        ModelTokenizer("m", folder, Thinking(end="[/THINK]", when="always"))
    assert ModelTokenizer("m", folder, Thinking(end="[/THINK]")).thinking_end_id is None


def test_ids_outside_the_vocabulary_are_refused(tiny: ModelTokenizer) -> None:
    for bad in (-1, tiny.vocab_size):
        with pytest.raises(ValueError, match="outside the model's vocabulary"):
            tiny.decode([bad])


@pytest.mark.parametrize("breakage", ["missing", "broken", "config", "template"])
def test_broken_folders_say_what_is_wrong(tmp_path: Path, breakage: str) -> None:
    folder = write_folder(tmp_path / "m", CHATML)
    if breakage == "missing":
        (folder / "tokenizer.json").unlink()
    elif breakage == "broken":
        (folder / "tokenizer.json").write_text("{}")
    elif breakage == "config":
        (folder / "tokenizer_config.json").write_text("{")
    else:
        (folder / "chat_template.jinja").write_text("{% for %}")
    with pytest.raises(ModelFolderError, match="m"):
        ModelTokenizer("m", folder)


def test_catalog_refuses_a_name_used_twice(tiny: ModelTokenizer) -> None:
    with pytest.raises(ModelFolderError, match="same name"):
        Catalog([tiny, tiny])
    assert dict(Catalog([tiny])) == {"tiny": tiny}


def test_model_without_template_says_so(tmp_path: Path) -> None:
    model = ModelTokenizer("plain", write_folder(tmp_path / "m", None))
    with pytest.raises(TemplateError, match="no chat template"):
        model.apply_chat_template([{"role": "user", "content": "hi"}])


def test_template_refusals_reach_the_caller() -> None:
    template = ChatTemplate("{{ raise_exception('roles must alternate') }}", {})
    with pytest.raises(TemplateError, match="roles must alternate"):
        template.render([{"role": "user", "content": "hi"}])


def test_templates_cannot_leave_their_sandbox() -> None:
    template = ChatTemplate("{{ messages.__class__.__mro__ }}{{ ''.__class__.__base__.__subclasses__() }}", {})
    with pytest.raises(TemplateError):
        template.render([{"role": "user", "content": "hi"}])


def test_generation_blocks_and_helpers_render() -> None:
    source = "{% generation %}{{ messages[0].content }}{% endgeneration %}{{ {'a': '<é>'} | tojson }}"
    assert ChatTemplate(source, {}).render([{"role": "user", "content": "hi"}]) == 'hi{"a": "<é>"}'


def test_tools_go_to_a_template_that_takes_them() -> None:
    template = ChatTemplate(WITH_TOOLS, {})
    assert template.renders_tools
    assert template.render([{"role": "user", "content": "hi"}], [TOOL]).startswith("TOOLS [{")
    assert "TOOLS" not in template.render([{"role": "user", "content": "hi"}], None)


def test_tools_become_text_for_a_template_that_does_not_take_them() -> None:
    template = ChatTemplate(CHATML, {})
    assert not template.renders_tools
    call = {"id": "1", "type": "function", "function": {"name": "add", "arguments": {"a": 1}}}
    text = template.render(
        [
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": "1+1?"},
            {"role": "assistant", "content": "", "tool_calls": [call]},
            {"role": "tool", "content": "2", "tool_call_id": "1"},
            {"role": "tool", "content": "3", "tool_call_id": "2"},
        ],
        [TOOL],
    )
    assert text.startswith("<|im_start|>system\nBe brief.\n\n# Tools\n")
    assert json.dumps(TOOL) in text
    assert '<|im_start|>assistant\n<tool_call>\n{"name": "add", "arguments": {"a": 1}}\n</tool_call><|im_end|>' in text
    responses = "<tool_response>\n2\n</tool_response>\n<tool_response>\n3\n</tool_response>"
    assert f"<|im_start|>user\n{responses}<|im_end|>" in text


def test_real_model_agrees_with_transformers() -> None:
    from transformers import AutoTokenizer

    from engine.vllm.model import ensure_model

    folder = ensure_model()
    ours, theirs = ModelTokenizer("real", folder), AutoTokenizer.from_pretrained(folder)
    texts = [
        "Hello, world!",
        " leading space",
        "tabs\tand\nlines\r\n",
        "Grüße, 世界 🌍",
        "<|im_end|> inside",
        "12345 67",
    ]
    for text in texts:
        assert ours.encode(text) == theirs(text)["input_ids"]
        assert ours.decode(ours.encode(text)) == theirs.decode(theirs(text)["input_ids"], skip_special_tokens=True)
    for messages in (
        [{"role": "user", "content": "hi"}],
        [{"role": "system", "content": "s"}, {"role": "user", "content": "é"}],
    ):
        rendered = theirs.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        assert ours.render_chat(messages) == rendered
        assert ours.apply_chat_template(messages) == theirs(rendered, add_special_tokens=False)["input_ids"]
