"""Measured acceptance of drafted tokens (ALGORITHMS section 5: per tier and class), and what admission counts on.

Lengths are chosen inside the step plan: scheduling.kernels.speculation, the strict form.
"""

from __future__ import annotations

import numpy as np

from scheduling.kernels.rows import PACE, REM
from scheduling.kernels.speculation import count_on
from scheduling.request_table import FloatArray, IntArray

PRIOR_TRIES = 20.0
SKIPPED_TRIES = 0.01
"""What a step without speculation weighs, in tries, when what was seen fades."""
LEAST, MOST = 0.001, 0.99


class AcceptanceEstimator:
    """Acceptance per class and tier: an exponential average over drafted tokens that were tried.

    The share is per position, as the formula wants it: after the first refusal of a step nothing was tried. A step
    that should have verified drafts and had none counts as a refusal of the first: what plans count on is tokens.
    """

    def __init__(self, prior: float = 0.5, memory_tokens: float = 500.0) -> None:
        """prior: acceptance before anything was seen; memory_tokens: tries after which it has faded to a third."""
        if not 0.0 <= prior < 1.0 or memory_tokens < 1.0:
            raise ValueError("prior must lie in [0, 1) and memory_tokens be at least 1")
        self._prior = prior
        self._memory = memory_tokens
        self._tried: dict[tuple[str, float], tuple[float, float]] = {}

    def observe(self, slo_class: str, tpot_s: float, drafted: int, accepted: int) -> float:
        """Learn from one step of one request that was to verify drafts; returns the rate.

        drafted: those there were; accepted: the first of them that were right.
        """
        if not 0 <= accepted <= drafted:
            raise ValueError(f"{accepted} of {drafted} drafted tokens accepted")
        tries = max(1, min(accepted + 1, drafted))
        kept = max(0.0, 1.0 - tries / self._memory)
        hits, total = self._seen(slo_class, tpot_s)
        self._tried[slo_class, tpot_s] = (hits * kept + accepted, total * kept + tries)
        return self.rate(slo_class, tpot_s)

    def skipped(self, slo_class: str, tpot_s: float) -> float:
        """Account for a step without speculation; returns the rate.

        What was seen fades towards the prior, slowly: drafts that did not pay are tried again one day.
        """
        hits, total = self._seen(slo_class, tpot_s)
        self._tried[slo_class, tpot_s] = (hits + (self._prior * total - hits) * SKIPPED_TRIES / self._memory, total)
        return self.rate(slo_class, tpot_s)

    def rate(self, slo_class: str, tpot_s: float) -> float:
        """Chance that a drafted token is accepted; never 0, which stands for no speculation at all."""
        hits, total = self._seen(slo_class, tpot_s)
        return min(max(hits / total, LEAST), MOST)

    def _seen(self, slo_class: str, tpot_s: float) -> tuple[float, float]:
        return self._tried.get((slo_class, tpot_s), (self._prior * PRIOR_TRIES, PRIOR_TRIES))


def counted_on(
    accept_rate: FloatArray,
    state: FloatArray,
    items: IntArray,
    item_rem: FloatArray,
    lines: FloatArray,
    caps: FloatArray,
    max_spec: int,
) -> FloatArray:
    """Lines of steps that speculate; the state's paces become those of such steps.

    accept_rate: of the residents, the first columns of the state. items: columns of the newcomers, which get the
    residents' mean; item_rem: their prompt tokens.
    """
    accept_rate = np.concatenate([accept_rate, np.full(len(items), accept_rate.mean())])
    together = state.copy()
    together[REM, items] = item_rem
    spec = np.ones(len(accept_rate), np.int64)
    ahead: FloatArray = count_on(together, len(spec), accept_rate, lines, caps.copy(), max_spec, spec)
    state[PACE] = together[PACE]
    return ahead
