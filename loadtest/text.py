"""Prompts with readable text of a wanted length, written by a small seeded grammar: no text is copied from anywhere.

Each application has its own kind: conversation, Python code to complete, articles to summarize, tool descriptions with
JSON results, word problems. A length is given in words, split at white space; loadtest.calibration turns tokens of the
model under test into words.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterator
from pathlib import Path

_WORDS: dict[str, list[str]] = json.loads(Path(__file__).with_name("words.json").read_text())
_PEOPLE, _PLACES, _THINGS = _WORDS["people"], _WORDS["places"], _WORDS["things"]
_ADJECTIVES, _VERBS, _TOPICS, _FIELDS = _WORDS["adjectives"], _WORDS["verbs"], _WORDS["topics"], _WORDS["fields"]


def _sentence_chat(rng: random.Random) -> str:
    forms = (
        "How would you {v} the {a} {t} near the {p}?",
        "I told {n} that the {t} at the {p} was too {a}, and now we cannot agree.",
        "Please explain it once more, as if I had never seen a {t} before.",
        "What would change if the {p} were more {a} than it is today?",
        "{n} thinks we should {v} the {t} first and talk about the {p} later.",
        "My plan is to {v} everything before {n} comes back from the {p}.",
    )
    return _fill(rng.choice(forms), rng)


def _sentence_article(rng: random.Random) -> str:
    forms = (
        "The study followed {c} households near the {p} and recorded how {o} changed over {d} years.",
        "According to {n}, the {a} {p} explains about {d} percent of the difference in {o}.",
        "Earlier work had treated {o} and {o2} as independent, which the new measurements contradict.",
        "The authors {v} each {t} twice and report the larger of both errors.",
        "In the second part, spending on {o2} rose by {d} percent while {o} stayed where it was.",
        "Critics, among them {n}, point out that the {p} was closed for {d} months of the survey.",
        "The report concludes that the {a} approach to {o} would cost less than the present one.",
    )
    return _fill(rng.choice(forms), rng)


def _sentence_problem(rng: random.Random) -> str:
    forms = (
        "{n} buys {c} boxes at the {p}, and every box holds {d} parts of a {t}.",
        "Each of the {d} workers can {v} {e} of them in an hour, but {e} of the boxes arrive late.",
        "Later {n} returns a third of the rest and sells {d} pieces for {c} coins.",
        "One {a} {t} needs {e} parts and takes {d} minutes to finish.",
        "How many are left when {n} has to give {e} of every {d} pieces to the {p}?",
    )
    return _fill(rng.choice(forms), rng)


def _function_code(rng: random.Random) -> str:
    verb, thing, key, other = rng.choice(_VERBS), rng.choice(_THINGS), *rng.sample(_FIELDS, 2)
    limit, factor = rng.randint(2, 90), rng.randint(2, 9)
    forms = (
        f"def {verb}_{thing}s(rows: list[dict[str, float]], limit: float = {limit}) -> list[float]:\n"
        f'    """Return the {key} of every row whose {other} is below the limit, largest first."""\n'
        f'    kept = [row["{key}"] for row in rows if row["{other}"] < limit]\n'
        f"    return sorted(kept, reverse=True)[:{factor}]\n",
        f"class {thing.capitalize()}:\n"
        f'    """A {thing} with a {key} that can only grow."""\n'
        f"    def __init__(self, {key}: int = {factor}) -> None:\n"
        f"        self.{key} = {key}\n"
        f"    def {verb}(self, by: int) -> int:\n"
        f"        if by < 0:\n"
        f'            raise ValueError(f"{key} cannot shrink by {{by}}")\n'
        f"        self.{key} += by * {factor}\n"
        f"        return self.{key}\n",
    )
    return rng.choice(forms)


def _json_record(rng: random.Random) -> str:
    record = {
        "name": f"{rng.choice(_VERBS)}_{rng.choice(_THINGS)}",
        "place": rng.choice(_PLACES),
        "owner": rng.choice(_PEOPLE),
        rng.choice(_FIELDS): rng.randint(1, 9999),
        "note": _fill("the {t} near the {p} is {a}", rng),
    }
    return json.dumps(record)


def _fill(form: str, rng: random.Random) -> str:
    first, second = rng.sample(_TOPICS, 2)
    return form.format(
        n=rng.choice(_PEOPLE),
        p=rng.choice(_PLACES),
        t=rng.choice(_THINGS),
        a=rng.choice(_ADJECTIVES),
        v=rng.choice(_VERBS),
        o=first,
        o2=second,
        c=rng.randint(100, 5000),
        d=rng.randint(11, 60),
        e=rng.randint(2, 9),
    )


_KINDS: dict[str, tuple[str, Callable[[random.Random], str], str]] = {
    "chatbot": ("Let us talk about {p} and {t}. ", _sentence_chat, " "),
    "coding": ("Complete the following Python module about the {t}.\n\n", _function_code, "\n"),
    "summarization": ("Summarize the following report on {o}.\n\n", _sentence_article, " "),
    "tool": ("You may call these functions to help {n} with the {t}.\n", _json_record, "\n"),
    "reasoning": ("Think step by step. ", _sentence_problem, " "),
}

APPLICATIONS = tuple(_KINDS)
"""Names of the kinds of text: those of the application classes."""


def prompt(application: str, words: int, seed: int) -> str:
    """Text of exactly `words` words (at least 1), the same for the same seed; KeyError names the applications."""
    opening, piece, separator = _kind(application)
    rng = random.Random(f"{application}/{seed}")
    return _cut(_pieces(_fill(opening, rng), piece, separator, rng), words)


def tool_result(words: int, seed: int) -> str:
    """Answer of a tool of `words` words, as the next message of a tool session."""
    rng = random.Random(f"result/{seed}")
    return _cut(_pieces("Result: ", _json_record, "\n", rng), words)


def _kind(application: str) -> tuple[str, Callable[[random.Random], str], str]:
    if application not in _KINDS:
        raise KeyError(f"no text for application {application!r}; known: {', '.join(_KINDS)}")
    return _KINDS[application]


def _pieces(opening: str, piece: Callable[[random.Random], str], separator: str, rng: random.Random) -> Iterator[str]:
    yield opening
    while True:
        yield piece(rng) + separator


def _cut(pieces: Iterator[str], words: int) -> str:
    """Join pieces until they hold enough words, and cut inside the last one, white space kept as it is."""
    wanted = max(1, words)
    text, have = "", 0
    for piece in pieces:
        count = len(piece.split())
        if have + count < wanted:
            text, have = text + piece, have + count
            continue
        return text + _first_words(piece, wanted - have)
    return text


def _first_words(piece: str, count: int) -> str:
    position = 0
    for word in piece.split()[:count]:
        position = piece.index(word, position) + len(word)
    return piece[:position]
