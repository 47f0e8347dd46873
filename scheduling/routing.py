"""Routing policies by name: which replicas are asked for a promise, in which order (ALGORITHMS section 8).

Each asks at most `limit` replicas, so that the size of the fleet does not slow a decision.
"""

from __future__ import annotations

from collections.abc import Sequence

from scheduling.policy import ReplicaView, RoutingPolicy
from scheduling.types import Candidate

DEFAULT_LIMIT = 4
DEFAULT_ROUTING = "sequential"


class Sequential:
    """The paper's: round-robin first hop, then the next replicas in turn."""

    def __init__(self, limit: int = DEFAULT_LIMIT) -> None:
        """Ask at most `limit` replicas per request."""
        self._limit = limit
        self._next = 0

    def order(self, now_s: float, candidate: Candidate, views: Sequence[ReplicaView]) -> Sequence[int]:
        """Start one replica further than for the request before."""
        if not views:
            return ()
        first = self._next % len(views)
        self._next = first + 1
        return [(first + hop) % len(views) for hop in range(min(self._limit, len(views)))]


def get(name: str = DEFAULT_ROUTING, limit: int = DEFAULT_LIMIT) -> RoutingPolicy:
    """Routing policy by name; ValueError names the ones there are."""
    if name in ("sequential", "round-robin"):
        return Sequential(limit)
    raise ValueError(f"unknown routing policy {name!r}; known: sequential, round-robin")
