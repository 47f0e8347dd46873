"""A replica is back, empty."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from simulation.cluster import Cluster


@dataclass(frozen=True, slots=True)
class ReplicaUp:
    """replica: its index."""

    replica: int

    def apply(self, cluster: Cluster, now_s: float) -> None:
        """Let it take requests again."""
        cluster.replicas[self.replica].alive = True
        cluster.boundary(now_s)
