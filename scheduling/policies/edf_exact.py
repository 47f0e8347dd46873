"""`edf-exact`: greedy by prefill deadline with the exact oracle; isolates what the search over values buys."""

from __future__ import annotations

from dataclasses import replace

from scheduling.batch_settings import BatchSettings
from scheduling.batching import DeadlineBatching
from scheduling.headroom import ALONE, AMONG_OTHERS, Headroom
from scheduling.policies.exact import ExactAdmission
from scheduling.policy import Policy
from scheduling.routing import get as routing


def policy(
    best_effort_floor: float = 0.02, headroom: Headroom | None = None, settings: BatchSettings | None = None
) -> Policy:
    """Bundle; the batches and the memory kept for requests to come are those of `slos`."""
    chosen = settings or BatchSettings()
    admission = ExactAdmission(0, chosen, best_effort_floor, headroom or AMONG_OTHERS)
    return Policy(
        "edf-exact",
        "greedy admission by deadline with the exact simulation of batches",
        admission,
        DeadlineBatching(chosen, best_effort_floor),
        routing("sequential"),
        alone=replace(admission, headroom=headroom or ALONE),
        gentle=replace(admission, beside_hopeful=True),
        hope=ExactAdmission(0, chosen, beside_hopeful=True),
    )
