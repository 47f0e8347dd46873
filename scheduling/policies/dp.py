"""`dp`, the paper: Algorithm 1 over tier counts with full memory reservation, Algorithm 2 for batches."""

from __future__ import annotations

from scheduling.paper_batching import PaperBatching
from scheduling.policies.tier_counts import TierAdmission
from scheduling.policy import Policy
from scheduling.routing import get as routing


def policy() -> Policy:
    """Bundle: chained PB* for admission, Algorithm 2 for batches, round robin with a next hop for routing."""
    return Policy(
        "dp",
        "the paper's multi-SLO dynamic programme and dynamic batches",
        TierAdmission(greedy=False),
        PaperBatching(),
        routing("sequential"),
    )
