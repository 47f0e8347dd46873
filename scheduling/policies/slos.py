"""`slos`, the default: label search over exactly simulated states, batches from per-request deadlines."""

from __future__ import annotations

from dataclasses import replace

from scheduling.batch_settings import BatchSettings
from scheduling.batching import DeadlineBatching
from scheduling.headroom import ALONE, AMONG_OTHERS, Headroom
from scheduling.policies.exact import ExactAdmission
from scheduling.policy import Policy
from scheduling.routing import get as routing


def policy(
    max_labels: int = 128,
    best_effort_floor: float = 0.02,
    headroom: Headroom | None = None,
    settings: BatchSettings | None = None,
    hopeful: bool = True,
) -> Policy:
    """Bundle; max_labels bounds the search, best_effort_floor is the share of time kept for best-effort work.

    headroom: what is kept for requests to come. hopeful: declined requests that can still be in time are served by
    their deadlines in what promises leave; otherwise they wait as best effort (an ablation).
    """
    chosen = settings or BatchSettings()
    admission = ExactAdmission(max_labels, chosen, best_effort_floor, headroom or AMONG_OTHERS)
    return Policy(
        "slos",
        "exact simulation of batches, label search over values, memory by future peak, decodes run ahead",
        admission,
        DeadlineBatching(chosen, best_effort_floor),
        routing("sequential"),
        alone=replace(admission, headroom=headroom or ALONE) if hopeful else None,
        gentle=replace(admission, beside_hopeful=True) if hopeful else None,
        hope=ExactAdmission(0, chosen, beside_hopeful=True) if hopeful else None,
    )
