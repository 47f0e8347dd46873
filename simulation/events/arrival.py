"""A request, or the next round of a session, reaches the controller."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from simulation.cluster import Cluster


@dataclass(frozen=True, slots=True)
class Arrival:
    """row: the request in the workload."""

    row: int

    def apply(self, cluster: Cluster, now_s: float) -> None:
        """Offer it to the controller; an idle replica means an answer now, otherwise at the next step boundary."""
        cluster.controller.offer(self.row)
        if cluster.any_idle():
            cluster.boundary(now_s)
