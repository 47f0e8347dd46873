"""`edf-exact`: greedy by prefill deadline with the exact oracle; isolates what the search over values buys."""

from __future__ import annotations

from scheduling.batching import BatchSettings, DeadlineBatching
from scheduling.policies.exact import ExactAdmission
from scheduling.policy import Policy
from scheduling.routing import get as routing


def policy(best_effort_floor: float = 0.02, settings: BatchSettings | None = None) -> Policy:
    """Bundle; the batches are those of `slos`."""
    chosen = settings or BatchSettings()
    return Policy(
        "edf-exact",
        "greedy admission by deadline with the exact simulation of batches",
        ExactAdmission(0, chosen, best_effort_floor),
        DeadlineBatching(chosen, best_effort_floor),
        routing("sequential"),
    )
