from __future__ import annotations

import ast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loadtest import text
from loadtest.calibration import TokensPerWord


@given(st.sampled_from(text.APPLICATIONS), st.integers(1, 400), st.integers(0, 1 << 40))
def test_a_prompt_has_exactly_the_words_asked_for_and_repeats_by_seed(application: str, words: int, seed: int) -> None:
    made = text.prompt(application, words, seed)
    assert len(made.split()) == words
    assert made == text.prompt(application, words, seed)
    assert made == made.strip()
    assert "{" not in made or application in ("coding", "tool")


def test_prompts_of_two_seeds_differ_early_so_that_no_prefix_cache_serves_both() -> None:
    for application in text.APPLICATIONS:
        first, second = text.prompt(application, 60, 1), text.prompt(application, 60, 2)
        assert first.split()[:20] != second.split()[:20]


def test_code_is_python() -> None:
    whole = text.prompt("coding", 400, 5)
    body = whole.split("\n\n", 1)[1]
    complete = body[: body.rindex("\ndef ") if "\ndef " in body else body.rindex("\nclass ")]
    assert ast.parse(complete).body


def test_a_tool_result_has_exactly_the_words_asked_for() -> None:
    assert [len(text.tool_result(words, 9).split()) for words in (1, 17, 250)] == [1, 17, 250]


def test_an_unknown_application_is_named() -> None:
    with pytest.raises(KeyError, match="poetry"):
        text.prompt("poetry", 5, 0)


def test_tokens_become_words_by_the_measured_line() -> None:
    measured = TokensPerWord(overhead=30.0, per_word=1.5)
    assert measured.words(330) == 200
    assert measured.added_words(30) == 20
    assert measured.words(3) == 1
