"""Measured acceptance of drafted tokens (ALGORITHMS section 5: per tier and class).

Lengths are chosen inside the step plan: scheduling.kernels.speculation, the strict form.
"""

from __future__ import annotations

PRIOR_TRIES = 20.0
SKIPPED_TRIES = 0.01
"""What a step that left its drafts alone weighs, in tries, when what was seen fades."""
LEAST, MOST = 0.001, 0.99

Key = tuple[str, float]
"""Class and TPOT."""


class AcceptanceEstimator:
    """Per class and tier: share of drafted tokens that are accepted, and of steps that have drafts at all.

    Both are exponential averages. Acceptance is per position, as the formula wants it: after the first refusal of a
    step nothing was tried. A lookup drafter often has nothing to propose; what plans count on is tokens.
    """

    def __init__(self, prior: float = 0.5, memory_tokens: float = 500.0) -> None:
        """prior: both before anything was seen; memory_tokens: tries after which it has faded to a third."""
        if not 0.0 <= prior < 1.0 or memory_tokens < 1.0:
            raise ValueError("prior must lie in [0, 1) and memory_tokens be at least 1")
        self._prior = prior
        self._memory = memory_tokens
        self._accepted: dict[Key, tuple[float, float]] = {}
        self._offered: dict[Key, tuple[float, float]] = {}

    def observe(self, slo_class: str, tpot_s: float, drafted: int, accepted: int) -> None:
        """Learn from one step of one request: so many tokens were verified, the first `accepted` were right."""
        if not 0 <= accepted <= drafted:
            raise ValueError(f"{accepted} of {drafted} drafted tokens accepted")
        self._add(self._accepted, (slo_class, tpot_s), accepted, min(accepted + 1, drafted))

    def offered(self, slo_class: str, tpot_s: float, there: bool) -> None:
        """Account for whether there were drafts when a request decoded."""
        self._add(self._offered, (slo_class, tpot_s), float(there), 1)

    def skipped(self, slo_class: str, tpot_s: float) -> None:
        """Account for drafts that were not verified.

        What was seen fades towards the prior, slowly: drafts that did not pay are tried again one day.
        """
        hits, total = self._seen(self._accepted, (slo_class, tpot_s))
        fading = SKIPPED_TRIES / self._memory
        self._accepted[slo_class, tpot_s] = (hits + (self._prior * total - hits) * fading, total)

    def rate(self, slo_class: str, tpot_s: float) -> float:
        """Chance that a drafted token is accepted; never 0, which stands for no speculation at all."""
        hits, total = self._seen(self._accepted, (slo_class, tpot_s))
        return min(max(hits / total, LEAST), MOST)

    def share(self, slo_class: str, tpot_s: float) -> float:
        """Share of steps that have drafts."""
        hits, total = self._seen(self._offered, (slo_class, tpot_s))
        return hits / total

    def _add(self, seen: dict[Key, tuple[float, float]], key: Key, hits: float, tries: int) -> None:
        kept = max(0.0, 1.0 - tries / self._memory)
        before, total = self._seen(seen, key)
        seen[key] = (before * kept + hits, total * kept + tries)

    def _seen(self, seen: dict[Key, tuple[float, float]], key: Key) -> tuple[float, float]:
        return seen.get(key, (self._prior * PRIOR_TRIES, PRIOR_TRIES))
