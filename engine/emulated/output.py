"""The text that an emulated model writes: drawn from a seed, the same on every replica."""

from __future__ import annotations

import hashlib
import math
import random
from collections.abc import Sequence

from engine.emulated.config import EmulatedConfig
from engine.protocol import EngineRequest, TokenLogprob

_MASK = (1 << 64) - 1
_SYLLABLES = tuple(
    first + second for first in "bdfgklmnprstvz" for second in ("a", "e", "i", "o", "u", "an", "el", "or")
)
_FIRST_WORD_ID = 8
_THINKING_END = "</think>"


class OutputScript:
    """Everything one request will say, computed position by position.

    The script depends on the prompt and the sampling seed when greedy or seeded, and on the request id besides when
    sampled without a seed. So another replica that is given prompt and tokens so far goes on exactly.
    """

    def __init__(self, request: EngineRequest, config: EmulatedConfig) -> None:
        """Draw the lengths of the thinking and the answer."""
        digest = hashlib.blake2b(digest_size=8)
        digest.update(repr((config.seed, config.model)).encode())
        digest.update(repr(request.token_ids[: request.prompt_tokens]).encode())
        if request.sampling.temperature > 0:
            seed = request.sampling.seed
            digest.update((request.request_id if seed is None else f"seed {seed}").encode())
        self._key = int.from_bytes(digest.digest(), "big")
        self._words = config.vocab_size - _FIRST_WORD_ID
        self._eos = config.eos_token_id
        self._ignore_eos = request.sampling.ignore_eos
        self._min_tokens = request.sampling.min_tokens
        draw = random.Random(self._key)
        length = _length(draw, config.output_mean, config.output_sigma)
        self._thinking_end_id = request.thinking_end_token_id
        self._thinking_end_at = -1
        if request.thinking_end_token_id is not None:
            self._thinking_end_at = _length(draw, config.thinking_mean, config.output_sigma)
            length += self._thinking_end_at
        self._eos_at = length

    def token(self, position: int) -> int:
        """Return the output token at a position, counted from the original prompt."""
        if position == self._thinking_end_at and self._thinking_end_id is not None:
            return self._thinking_end_id
        if position >= max(self._eos_at, self._min_tokens) and not self._ignore_eos:
            return self._eos
        return _FIRST_WORD_ID + _mix(self._key + position) % self._words

    def accepted(self, position: int, drafted: int, accept_rate: float) -> int:
        """Return how many of the tokens drafted at a position turn out right."""
        right = 0
        while right < drafted and _mix(self._key ^ ~(position + right)) / (_MASK + 1) < accept_rate:
            right += 1
        return right

    def logprobs(self, position: int, count: int) -> tuple[TokenLogprob, ...]:
        """Return made-up log probabilities: the chosen token first, then `count` candidates in order of rank."""
        chosen = self.token(position)
        probability = 0.5 + 0.4 * _mix(self._key + 3 * position + 1) / (_MASK + 1)
        first = TokenLogprob(chosen, math.log(probability), 1, word(chosen, position))
        candidates = [first]
        for rank in range(2, count + 1):
            other = _FIRST_WORD_ID + (chosen - _FIRST_WORD_ID + rank - 1) % self._words
            rest = math.log((1 - probability) / 2 ** (rank - 1))
            candidates.append(TokenLogprob(other, rest, rank, word(other, position)))
        return (first, *candidates[:count])

    def word(self, token_id: int, position: int) -> str:
        """Return the text of an output token; the end of sequence has none."""
        if token_id == self._eos:
            return ""
        if token_id == self._thinking_end_id:
            return _THINKING_END
        return word(token_id, position)

    def is_eos(self, token_id: int) -> bool:
        """Whether the token ends the output."""
        return token_id == self._eos and not self._ignore_eos


class StopText:
    """Finds stop strings in growing text; what could be the start of one is held back."""

    def __init__(self, stops: Sequence[str], pending: str = "") -> None:
        """Take the strings at which the output ends, and text that was not shown yet."""
        self._stops = [stop for stop in stops if stop]
        self._hold = max((len(stop) for stop in self._stops), default=1) - 1
        self._pending = pending

    def add(self, piece: str, may_stop: bool = True) -> tuple[str, bool]:
        """Return the text that may be shown now, and whether a stop string has come; may_stop: it counts if so."""
        self._pending += piece
        found = [at for stop in self._stops if may_stop and (at := self._pending.find(stop)) >= 0]
        if found:
            text, self._pending = self._pending[: min(found)], ""
            return text, True
        shown = max(0, len(self._pending) - self._hold)
        text, self._pending = self._pending[:shown], self._pending[shown:]
        return text, False

    def rest(self) -> str:
        """Return what was held back, when the output ends for another reason."""
        text, self._pending = self._pending, ""
        return text


def word(token_id: int, position: int) -> str:
    """Return a pronounceable word for a token id, with a space in front unless it is the first."""
    number, letters = token_id, ""
    while True:
        number, syllable = divmod(number, len(_SYLLABLES))
        letters += _SYLLABLES[syllable]
        if number == 0:
            break
    return letters if position == 0 else " " + letters


def _length(draw: random.Random, mean: float, sigma: float) -> int:
    return max(1, round(draw.lognormvariate(math.log(mean) - sigma * sigma / 2, sigma)))


def _mix(value: int) -> int:
    """Scramble 64 bits (splitmix64)."""
    value = (value * 0x9E3779B97F4A7C15 + 0x9E3779B97F4A7C15) & _MASK
    value = ((value ^ (value >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    value = ((value ^ (value >> 27)) * 0x94D049BB133111EB) & _MASK
    return value ^ (value >> 31)
