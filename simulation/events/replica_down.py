"""A replica dies with all its KV; its requests go elsewhere, with the tokens that had reached the controller."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from simulation.events.replica_up import ReplicaUp

if TYPE_CHECKING:
    from simulation.cluster import Cluster


@dataclass(frozen=True, slots=True)
class ReplicaDown:
    """replica: its index; down_s: until it is back, infinite when it stays away."""

    replica: int
    down_s: float

    def apply(self, cluster: Cluster, now_s: float) -> None:
        """Drop the step under way and offer every resident request again."""
        cluster.lose(self.replica)
        if math.isfinite(self.down_s):
            cluster.schedule(now_s + self.down_s, ReplicaUp(self.replica))
        cluster.boundary(now_s)
