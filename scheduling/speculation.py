"""Speculation (ALGORITHMS section 5): measured acceptance, and the paper's choice of lengths per tier.

The default policy chooses lengths inside its step plan (scheduling.kernels.speculation, the strict form); the paper's
own formula, for its own scoring, is here.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

from scheduling.time_model import TimeModel

MAX_LENGTH = 10


def expected_tokens(acceptance: float, length: int) -> float:
    """Acc(sl) = (1 - a^sl) / (1 - a): tokens expected from verifying `length` tokens, drafts + 1."""
    return float(length) if acceptance >= 1.0 else (1.0 - acceptance**length) / (1.0 - acceptance)


class AcceptanceEstimator:
    """Acceptance per tier and class: an exponential average of the share of drafted tokens that were accepted.

    The share is per position, as the formula wants it: after the first refusal of a step nothing was tried.
    """

    def __init__(self, prior: float = 0.5, memory_tokens: float = 500.0) -> None:
        """prior: acceptance before anything was seen; memory_tokens: tries after which it has faded to a third."""
        if not 0.0 <= prior < 1.0 or memory_tokens < 1.0:
            raise ValueError("prior must lie in [0, 1) and memory_tokens be at least 1")
        self._prior = prior
        self._memory = memory_tokens
        self._tried: dict[tuple[str, float], tuple[float, float]] = {}

    def observe(self, slo_class: str, tpot_s: float, drafted: int, accepted: int) -> None:
        """Learn from one step of one request."""
        if not 0 <= accepted <= drafted:
            raise ValueError(f"{accepted} of {drafted} drafted tokens accepted")
        tries = min(accepted + 1, drafted)
        if tries == 0:
            return
        kept = max(0.0, 1.0 - tries / self._memory)
        hits, total = self._tried.get((slo_class, tpot_s), (self._prior * 20.0, 20.0))
        self._tried[slo_class, tpot_s] = (hits * kept + accepted, total * kept + tries)

    def rate(self, slo_class: str, tpot_s: float) -> float:
        """Chance that a drafted token is accepted."""
        hits, total = self._tried.get((slo_class, tpot_s), (self._prior, 1.0))
        return min(max(hits / total, 0.0), 0.99)


@dataclass(frozen=True, slots=True)
class TierLoad:
    """Decodes of one tier."""

    tpot_s: float
    requests: int
    acceptance: float


def paper_lengths(tiers: Sequence[TierLoad], model: TimeModel, max_length: int = MAX_LENGTH) -> tuple[int, ...]:
    """Tokens to verify per step for each tier: maximise spare prompt tokens per second; all ones win ties.

    T = min_l TPOT_l * Acc(sl_l) is the length of a batch. The bottleneck tier and its length are enumerated, the
    others take the smallest length that keeps up.
    """
    best = tuple(1 for _ in tiers)
    best_rate = spare_tokens_per_s(tiers, best, model)
    for bottleneck, length in itertools.product(range(len(tiers)), range(1, max_length + 1)):
        period = tiers[bottleneck].tpot_s * expected_tokens(tiers[bottleneck].acceptance, length)
        lengths = []
        for index, tier in enumerate(tiers):
            mine = length if index == bottleneck else 1
            while mine < max_length and tier.tpot_s * expected_tokens(tier.acceptance, mine) < period - 1e-12:
                mine += 1
            lengths.append(mine)
        rate = spare_tokens_per_s(tiers, lengths, model)
        if rate > best_rate + 1e-9:
            best, best_rate = tuple(lengths), rate
    return best


def spare_tokens_per_s(tiers: Sequence[TierLoad], lengths: Sequence[int], model: TimeModel) -> float:
    """(Time2BS(T, sl) - sum_l n_l sl_l) / T, where looser tiers skip batches: their load is counted per second."""
    if not tiers:
        return 0.0
    period = min(
        tier.tpot_s * expected_tokens(tier.acceptance, length) for tier, length in zip(tiers, lengths, strict=True)
    )
    size = model.max_new_tokens(period, spec_steps=max(lengths) - 1)
    load = sum(
        tier.requests * length / (tier.tpot_s * expected_tokens(tier.acceptance, length))
        for tier, length in zip(tiers, lengths, strict=True)
    )
    return size / period - load
