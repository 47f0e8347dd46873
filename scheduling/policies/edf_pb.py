"""`edf-pb`: greedy by deadline with the paper's own PB*; isolates what the dynamic programme buys."""

from __future__ import annotations

from scheduling.paper_batching import PaperBatching
from scheduling.policies.tier_counts import TierAdmission
from scheduling.policy import Policy
from scheduling.routing import get as routing


def policy() -> Policy:
    """Bundle: chained PB* for admission, Algorithm 2 for batches, round robin with a next hop for routing."""
    return Policy(
        "edf-pb",
        "greedy admission by deadline with the paper's prefill budget",
        TierAdmission(greedy=True),
        PaperBatching(),
        routing("sequential"),
    )
