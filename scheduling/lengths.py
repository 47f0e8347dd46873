"""Output lengths are not known in advance: an online estimate per class, conditional on the tokens so far.

A window of recent lengths is kept for (class, tenant, prompt-length bucket), for (class, tenant), for the class and
for all; the estimate comes from the narrowest one with enough data.
"""

from __future__ import annotations

import bisect
import math
from collections import deque
from functools import lru_cache

WINDOW = 512
MIN_SAMPLES = 24
PRIOR_TOKENS = 256
_ROUNDING = 1e-9
_Key = tuple[str, ...]


class _Window:
    """The last WINDOW lengths, kept sorted beside their order of arrival.

    Each is twice the length, and one more where it was cut off: plain numbers are compared faster than pairs.
    """

    def __init__(self) -> None:
        self.order: deque[int] = deque()
        self.sorted: list[int] = []
        self._cut_off = 0

    def add(self, length: int, cut_off: bool) -> None:
        if len(self.order) == WINDOW:
            oldest = self.order.popleft()
            del self.sorted[bisect.bisect_left(self.sorted, oldest)]
            self._cut_off -= oldest & 1
        self.order.append(2 * length + cut_off)
        bisect.insort(self.sorted, 2 * length + cut_off)
        self._cut_off += cut_off

    def quantile_beyond(self, quantile: float, generated: int) -> int | None:
        """Quantile of the lengths greater than `generated`; None when there are fewer than 4 of them.

        One that was cut off says only that it would have been longer (Kaplan and Meier): the longest is the answer
        when too many were.
        """
        start, count = bisect.bisect_right(self.sorted, 2 * generated + 1), len(self.sorted)
        if count - start < 4:
            return None
        if not self._cut_off:
            beyond = count - start
            return self.sorted[start + min(beyond - 1, math.ceil(quantile * beyond - _ROUNDING) - 1)] >> 1
        longer = 1.0
        for index in range(start, count):
            if not self.sorted[index] & 1:
                longer *= 1.0 - 1.0 / (count - index)
                if longer <= 1.0 - quantile + _ROUNDING:
                    return self.sorted[index] >> 1
        return self.sorted[-1] >> 1


class LengthEstimator:
    """Learns output lengths from finished requests; state is one window per key, bounded by MAX_KEYS."""

    MAX_KEYS = 4096

    def __init__(self, prior_tokens: int = PRIOR_TOKENS) -> None:
        """Use prior_tokens as the expected output until anything has finished."""
        if prior_tokens < 1:
            raise ValueError(f"prior_tokens must be at least 1, not {prior_tokens}")
        self._prior_tokens = prior_tokens
        self._windows: dict[_Key, _Window] = {}

    def observe(
        self,
        slo_class: str,
        output_tokens: int,
        tenant: str = "",
        prompt_tokens: int = 0,
        *,
        cut_off: bool = False,
    ) -> None:
        """Learn from a request that ended by itself (not from a cancelled one); cut_off: by its max_tokens."""
        if output_tokens < 1:
            return
        for key in _keys(slo_class, tenant, max(prompt_tokens, 1).bit_length()):
            window = self._windows.get(key)
            if window is None:
                if len(self._windows) >= self.MAX_KEYS and key:
                    continue
                window = self._windows[key] = _Window()
            window.add(output_tokens, cut_off)

    def remaining(
        self,
        slo_class: str,
        quantile: float,
        generated: int,
        max_output_tokens: int,
        *,
        tenant: str = "",
        prompt_tokens: int = 0,
        hint: int | None = None,
    ) -> int:
        """Output tokens still to come at this risk level, given the tokens so far; at least 1, within the bound.

        hint: the client's estimate of the whole output, taken instead of the class's until it is passed.
        """
        bound = max(max_output_tokens - generated, 1)
        if hint is not None and hint > generated:
            return max(min(hint - generated, bound), 1)
        total: int | None = None
        for key in _keys(slo_class, tenant, max(prompt_tokens, 1).bit_length()):
            window = self._windows.get(key)
            if window is not None and len(window.sorted) >= MIN_SAMPLES:
                total = window.quantile_beyond(quantile, generated)
                break
        if total is None:
            # Past all that was seen (or nothing seen): lengths have heavy tails, so expect half as much again.
            total = max(self._prior_tokens, generated + max(generated // 2, 16)) if generated else self._prior_tokens
        return max(min(total - generated, bound), 1)


@lru_cache(maxsize=4096)
def _keys(slo_class: str, tenant: str, bucket: int) -> tuple[_Key, ...]:
    return ((slo_class, tenant, str(bucket)), (slo_class, tenant), (slo_class,), ())
