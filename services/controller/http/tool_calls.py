"""Finds Hermes-style tool calls in a model's output: <tool_call>{"name": ..., "arguments": {...}}</tool_call>."""

from __future__ import annotations

import json
from dataclasses import dataclass

import pydantic_core

_OPEN = "<tool_call>"
_CLOSE = "</tool_call>"


@dataclass(frozen=True, slots=True)
class ParsedCall:
    """One call; arguments is JSON text."""

    name: str
    arguments: str


class ToolCallParser:
    """Takes output text in any pieces and gives text and calls back in their order.

    The result does not depend on where the pieces are cut. White space next to a call belongs to the call. What
    stands between the tags and is not a call stays text, tags included. A call that the output ends in counts even
    without its closing tag: models often stop right after the JSON.
    """

    def __init__(self) -> None:
        self._buffer = ""  # not yet told: the body of an open call, or what may become an opening tag
        self._in_call = False
        self._space = ""  # white space that a call may follow
        self._after_call = False

    def push(self, text: str) -> list[str | ParsedCall]:
        """What is known after this piece."""
        found: list[str | ParsedCall] = []
        searched = max(0, len(self._buffer) - len(_CLOSE)) if self._in_call else 0
        self._buffer += text
        while True:
            if not self._in_call:
                start = self._buffer.find(_OPEN)
                if start < 0:
                    known = len(self._buffer) - _held_back(self._buffer)
                    self._text(self._buffer[:known], found)
                    self._buffer = self._buffer[known:]
                    return found
                self._text(self._buffer[:start], found)
                self._buffer = self._buffer[start + len(_OPEN) :]
                self._in_call = True
                searched = 0
            end = self._buffer.find(_CLOSE, searched)
            if end < 0:
                return found
            body, self._buffer = self._buffer[:end], self._buffer[end + len(_CLOSE) :]
            self._in_call = False
            self._call(body, _CLOSE, found)

    def flush(self) -> list[str | ParsedCall]:
        """What was held back, once the output has ended."""
        found: list[str | ParsedCall] = []
        if self._in_call:
            self._call(self._buffer, "", found)
        else:
            self._text(self._buffer, found)
        if self._space and not self._after_call:
            found.append(self._space)
        self._buffer, self._space, self._in_call = "", "", False
        return found

    def _call(self, body: str, closing: str, found: list[str | ParsedCall]) -> None:
        call = _parse(body)
        if call is None:
            self._text(_OPEN + body + closing, found)
            return
        self._space = ""
        self._after_call = True
        found.append(call)

    def _text(self, text: str, found: list[str | ParsedCall]) -> None:
        text = self._space + text
        if self._after_call:
            text = text.lstrip()
        visible = text.rstrip()
        self._space = text[len(visible) :]
        if visible:
            self._after_call = False
            found.append(visible)


def _held_back(text: str) -> int:
    """Length of the longest end of text that may be the beginning of an opening tag."""
    for length in range(min(len(text), len(_OPEN) - 1), 0, -1):
        if text.endswith(_OPEN[:length]):
            return length
    return 0


def _parse(body: str) -> ParsedCall | None:
    try:
        value = pydantic_core.from_json(body.strip(), allow_inf_nan=False)
    except ValueError:
        return None
    if not isinstance(value, dict) or not isinstance(value.get("name"), str) or not value["name"]:
        return None
    arguments = value.get("arguments", value.get("parameters", {}))
    if isinstance(arguments, str):  # some models write the arguments as JSON text already
        try:
            arguments = pydantic_core.from_json(arguments, allow_inf_nan=False)
        except ValueError:
            return None
    if not isinstance(arguments, dict):
        return None
    return ParsedCall(value["name"], json.dumps(arguments, ensure_ascii=False))
