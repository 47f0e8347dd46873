"""`slos`, the default: label search over exactly simulated states, batches from per-request deadlines."""

from __future__ import annotations

from scheduling.batching import BatchSettings, DeadlineBatching
from scheduling.policies.exact import ExactAdmission
from scheduling.policy import Policy
from scheduling.routing import get as routing


def policy(max_labels: int = 128, best_effort_floor: float = 0.02, settings: BatchSettings | None = None) -> Policy:
    """Bundle; max_labels bounds the search, best_effort_floor is the share of time kept for best-effort work."""
    chosen = settings or BatchSettings()
    return Policy(
        "slos",
        "exact simulation of batches, label search over values, memory by future peak, decodes run ahead",
        ExactAdmission(max_labels, chosen, best_effort_floor),
        DeadlineBatching(chosen, best_effort_floor),
        routing("sequential"),
    )
