"""How many tokens the model under test makes of our words, measured by asking it: two short prompts per application."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from loadtest import text
from loadtest.records import Call, Transport

_PROBE_WORDS = (24, 144)
_PROBE_TIMEOUT_S = 60.0


@dataclass(frozen=True, slots=True)
class TokensPerWord:
    """tokens = overhead + per_word * words; overhead is what the chat template adds."""

    overhead: float
    per_word: float

    def words(self, tokens: int) -> int:
        """Words of a whole prompt of about this many tokens, at least 1."""
        return max(1, round((tokens - self.overhead) / self.per_word))

    def added_words(self, tokens: int) -> int:
        """Words of a further message that adds about this many tokens, at least 1."""
        return max(1, round(tokens / self.per_word))


def measure(transport: Transport, model: str, applications: Iterable[str], slo_class: str) -> dict[str, TokensPerWord]:
    """Ask for the lengths; CallFailed when the cluster refuses. slo_class is the class that the probes go under."""
    return {application: _fit(transport, model, application, slo_class) for application in applications}


def _fit(transport: Transport, model: str, application: str, slo_class: str) -> TokensPerWord:
    counts = []
    for words in _PROBE_WORDS:
        message = ("user", text.prompt(application, words, seed=0))
        call = Call(model=model, messages=(message,), max_tokens=1, slo_class=slo_class, seed=0)
        counts.append(max(piece.prompt_tokens for piece in transport.generate(call, _PROBE_TIMEOUT_S)))
    per_word = max(0.1, (counts[1] - counts[0]) / (_PROBE_WORDS[1] - _PROBE_WORDS[0]))
    return TokensPerWord(overhead=counts[0] - per_word * _PROBE_WORDS[0], per_word=per_word)
