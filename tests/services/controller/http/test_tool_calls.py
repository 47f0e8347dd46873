from __future__ import annotations

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from services.controller.http.tool_calls import ParsedCall, ToolCallParser

FRAGMENTS = st.lists(
    st.one_of(
        st.sampled_from(
            [
                "<tool_call>",
                "</tool_call>",
                '{"name": "f", "arguments": {"a": [1, "é"]}}',
                '\n{"name": "g", "arguments": {}}\n',
                '{"name": 3}',
                "<tool_",
                "</tool",
                "<",
                " ",
                "\n\n",
                "text",
            ]
        ),
        st.text(max_size=5),
    ),
    max_size=12,
)


def parse(pieces: list[str]) -> list[str | ParsedCall]:
    """Everything found, neighbouring texts joined."""
    parser = ToolCallParser()
    joined: list[str | ParsedCall] = []
    for found in [*map(parser.push, pieces), parser.flush()]:
        for item in found:
            if isinstance(item, str) and joined and isinstance(joined[-1], str):
                joined[-1] += item
            else:
                joined.append(item)
    return joined


@settings(max_examples=1000, deadline=None)
@given(fragments=FRAGMENTS, data=st.data())
def test_result_does_not_depend_on_where_text_is_cut(fragments: list[str], data: st.DataObject) -> None:
    text = "".join(fragments)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(text)), max_size=len(text) + 1)))
    pieces = [text[start:end] for start, end in zip([0, *cuts], [*cuts, len(text)], strict=True)]
    assert parse(pieces) == parse([text]) == parse(list(text))


@settings(max_examples=500, deadline=None)
@given(fragments=FRAGMENTS)
def test_text_without_a_call_comes_out_unchanged(fragments: list[str]) -> None:
    text = "".join(fragments)
    found = parse([text])
    if not any(isinstance(item, ParsedCall) for item in found):
        assert "".join(item for item in found if isinstance(item, str)) == text


@settings(max_examples=300, deadline=None)
@given(
    before=st.text(st.characters(exclude_characters="<"), max_size=20),
    name=st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=10),
    arguments=st.dictionaries(st.text(st.characters(exclude_categories=["Cs"])), st.integers() | st.text(), max_size=3),
    closed=st.booleans(),
)
def test_every_well_formed_call_is_found(before: str, name: str, arguments: dict[str, object], closed: bool) -> None:
    body = json.dumps({"name": name, "arguments": arguments})
    found = parse([before + "<tool_call>\n" + body + ("\n</tool_call>" if closed else "")])
    if "</tool_call>" in body:
        return
    *texts, call = found
    assert isinstance(call, ParsedCall)
    assert call.name == name
    assert json.loads(call.arguments) == arguments
    assert texts == ([before.rstrip()] if before.rstrip() else [])


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('<tool_call>{"name":"a","arguments":{}}</tool_call>', [ParsedCall("a", "{}")]),
        (
            'x <tool_call>{"name":"a"}</tool_call>\n<tool_call>{"name":"b","parameters":{"k":1}}</tool_call> y',
            ["x", ParsedCall("a", "{}"), ParsedCall("b", '{"k": 1}'), "y"],
        ),
        ('<tool_call>{"name":"a","arguments":"{\\"k\\":1}"}</tool_call>', [ParsedCall("a", '{"k": 1}')]),
        ("<tool_call>not json</tool_call>", ["<tool_call>not json</tool_call>"]),
        (
            '<tool_call>{"name":"a","arguments":[1]}</tool_call>',
            ['<tool_call>{"name":"a","arguments":[1]}</tool_call>'],
        ),
        ('<tool_call>{"name":"a","arguments":{"x":NaN}}', ['<tool_call>{"name":"a","arguments":{"x":NaN}}']),
        ("<tool_call>" + "[" * 100_000, ["<tool_call>" + "[" * 100_000]),
        ("a < b", ["a < b"]),
        ("ends in <tool", ["ends in <tool"]),
        ("trailing \n", ["trailing \n"]),
        ("", []),
    ],
)
def test_examples(text: str, expected: list[str | ParsedCall]) -> None:
    assert parse([text]) == expected
