"""How long an engine step takes (ALGORITHMS section 6): prediction and inverse; scheduling/fit.py fits it.

A model is a roofline: the largest of a few lines, each linear in the shape of the batch.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

LINE_TERMS = ("constant", "new_tokens", "requests", "decode_kv_tokens", "prefill_attention", "spec_steps")


class BatchShape(NamedTuple):
    """What the time of a step depends on.

    new_tokens: tokens computed (prefill chunks, 1 per decode, drafts); requests: requests in the batch;
    decode_kv_tokens: KV tokens read by decodes; prefill_attention: sum over chunks of
    chunk * (context_before + chunk / 2); spec_steps: drafted tokens per request, largest in the batch.
    """

    new_tokens: float
    requests: float = 0.0
    decode_kv_tokens: float = 0.0
    prefill_attention: float = 0.0
    spec_steps: float = 0.0


@dataclass(frozen=True, slots=True)
class FitQuality:
    """Quality of a fit on held-out batches: R^2, quantiles of |predicted / measured - 1|, sizes of both sets."""

    r2: float
    p50_relative_error: float
    p99_relative_error: float
    held_out: int
    fitted: int


@lru_cache(maxsize=256)
def _scaled(lines: tuple[tuple[float, ...], ...], margin: float) -> npt.NDArray[np.float64]:
    array = np.array(lines, dtype=np.float64) * margin
    array.setflags(write=False)
    return array


@dataclass(frozen=True, slots=True)
class TimeModel:
    """Predicted duration of a step: margin * max over lines of (constant + coefficients . shape), seconds.

    lines: each (constant, new_tokens, requests, decode_kv_tokens, prefill_attention, spec_steps), none negative, but
    requests may go down to -new_tokens: a decode's token can cost less than a prompt token, never less than nothing.
    margin: safety factor >= 1. source: measured | computed | assumed, and where from.
    """

    lines: tuple[tuple[float, ...], ...]
    margin: float = 1.0
    source: str = ""
    quality: FitQuality | None = None
    array: npt.NDArray[np.float64] = field(init=False, repr=False, compare=False)
    """The lines with the margin multiplied in, shape (lines, 6): what kernels read."""

    def __post_init__(self) -> None:
        """Check the coefficients."""
        if not self.lines:
            raise ValueError("a time model needs at least one line")
        for line in self.lines:
            if len(line) != len(LINE_TERMS):
                raise ValueError(f"a line has {len(LINE_TERMS)} coefficients {LINE_TERMS}, not {len(line)}: {line}")
            constant, tokens, requests, *others = line
            if not all(math.isfinite(c) for c in line) or min(constant, tokens, requests + tokens, *others) < 0:
                raise ValueError(f"coefficients must be finite and >= 0 (requests: >= -new_tokens): {line}")
        if max(line[0] + line[1] for line in self.lines) <= 0:
            raise ValueError("a batch of one token must take time: constant or new_tokens must be positive")
        if not (math.isfinite(self.margin) and self.margin >= 1.0):
            raise ValueError(f"margin must be at least 1, not {self.margin}")
        object.__setattr__(self, "array", _scaled(self.lines, self.margin))

    def duration_s(self, shape: BatchShape) -> float:
        """Predicted duration of a step, margin included."""
        return self.margin * self._raw_duration_s(shape)

    def _raw_duration_s(self, shape: BatchShape) -> float:
        tokens, requests, kv, attention, spec = shape
        return max(
            c + k_t * tokens + k_r * requests + k_kv * kv + k_a * attention + k_s * spec
            for c, k_t, k_r, k_kv, k_a, k_s in self.lines
        )

    def max_new_tokens(
        self,
        time_s: float,
        *,
        requests: float = 0.0,
        decode_kv_tokens: float = 0.0,
        prefill_attention: float = 0.0,
        spec_steps: float = 0.0,
        chunk_context: float | None = None,
        limit: int = 1 << 30,
    ) -> int:
        """Most new tokens in a step of at most time_s (the inverse of duration_s); 0 when not even one fits.

        The other terms are held fixed, unless chunk_context is given: then the new tokens are one prefill chunk over
        that many tokens of context, and its attention is counted.
        """
        best = float(limit)
        for line in self.lines:
            constant, k_t, k_r, k_kv, k_a, k_s = (c * self.margin for c in line)
            slack = time_s - constant - k_r * requests - k_kv * decode_kv_tokens - k_a * prefill_attention
            slack -= k_s * spec_steps
            if slack < 0:
                return 0
            quadratic = k_a / 2 if chunk_context is not None else 0.0
            linear = k_t + (k_a * chunk_context if chunk_context is not None else 0.0)
            if quadratic > 0:
                best = min(best, 2 * slack / (linear + math.sqrt(linear * linear + 4 * quadratic * slack)))
            elif linear > 0:
                best = min(best, slack / linear)
        return int(best + 1e-9)

    def zero_load_prefill_s(self, prompt_tokens: int, max_batch_tokens: int) -> float:
        """Time to prefill the whole prompt alone, nothing cached, in chunks of the engine's token limit; no margin."""
        if prompt_tokens < 1 or max_batch_tokens < 1:
            raise ValueError("prompt_tokens and max_batch_tokens must be at least 1")
        total, context = 0.0, 0
        while context < prompt_tokens:
            chunk = min(max_batch_tokens, prompt_tokens - context)
            total += self._raw_duration_s(BatchShape(chunk, 1.0, 0.0, chunk * (context + chunk / 2)))
            context += chunk
        return total

    def with_margin(self, margin: float) -> TimeModel:
        """Return the same model with another safety factor."""
        return replace(self, margin=margin)

    def scaled(self, factor: float) -> TimeModel:
        """Return the same model with all times multiplied."""
        if not (math.isfinite(factor) and factor > 0):
            raise ValueError(f"factor must be positive, not {factor}")
        return replace(self, lines=tuple(tuple(c * factor for c in line) for line in self.lines))

    def to_json(self) -> str:
        """Return the model as JSON; from_json reads it back."""
        quality = None
        if self.quality is not None:
            quality = {name: getattr(self.quality, name) for name in FitQuality.__dataclass_fields__}
        lines = [dict(zip(LINE_TERMS, line, strict=True)) for line in self.lines]
        return json.dumps({"lines": lines, "margin": self.margin, "source": self.source, "quality": quality})

    @staticmethod
    def from_json(text: str) -> TimeModel:
        """Read what to_json wrote; ValueError says what is wrong."""
        try:
            data = json.loads(text)
            lines = tuple(tuple(float(line.get(term, 0.0)) for term in LINE_TERMS) for line in data["lines"])
            quality = FitQuality(**data["quality"]) if data.get("quality") else None
            return TimeModel(lines, float(data.get("margin", 1.0)), str(data.get("source", "")), quality)
        except (KeyError, TypeError, AttributeError, json.JSONDecodeError) as error:
            raise ValueError(f"not a time model: {error!r}") from error


def fit(samples: Sequence[tuple[BatchShape, float]]) -> TimeModel:
    """Fit a model to measured batches: see scheduling.fit.fit."""
    from scheduling import fit as fitting

    return fitting.fit(samples)
