from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.controller.reasoning import ReasoningSplitter

START, END = "<think>", "</think>"


def split(pieces: list[str]) -> tuple[str, str]:
    splitter = ReasoningSplitter(START, END)
    thinking, answer = "", ""
    for piece in pieces:
        more_thinking, more_answer = splitter.push(piece)
        thinking, answer = thinking + more_thinking, answer + more_answer
    last_thinking, last_answer = splitter.flush()
    return thinking + last_thinking, answer + last_answer


def cut(text: str, cuts: list[int]) -> list[str]:
    points = sorted({0, len(text), *(c % (len(text) + 1) for c in cuts)})
    return [text[a:b] for a, b in itertools.pairwise(points)]


# Letters of the markers are likely, so that false beginnings of a marker occur.
texts = st.text(alphabet="<>/thinkx \n", max_size=30).filter(lambda text: END not in text and START not in text)


@given(
    thinking=texts,
    answer=texts,
    opened=st.booleans(),
    closed=st.booleans(),
    cuts=st.lists(st.integers(0, 200), max_size=12),
)
def test_any_cutting_gives_the_same_two_texts(
    thinking: str, answer: str, opened: bool, closed: bool, cuts: list[int]
) -> None:
    # What would form a marker only together with its neighbour is another case.
    whole = (START if opened else "") + thinking + (END + answer if closed else "")
    if not opened and thinking.lstrip() and START.startswith(thinking.lstrip()[: len(START)]):
        return
    if closed and (thinking + END).find(END) != len(thinking):
        return
    assert split(cut(whole, cuts)) == (thinking, answer if closed else "")


def test_a_marker_in_pieces_is_never_shown() -> None:
    splitter = ReasoningSplitter(START, END)
    shown = [splitter.push(letter) for letter in "<think>a</think>b"]
    assert "".join(thinking for thinking, _ in shown) == "a"
    assert "".join(answer for _, answer in shown) == "b"


def test_text_without_an_end_marker_is_all_thinking() -> None:
    assert split(["I wonder </thi"]) == ("I wonder </thi", "")


def test_empty_markers_are_refused() -> None:
    with pytest.raises(ValueError, match="non-empty"):
        ReasoningSplitter("", END)
