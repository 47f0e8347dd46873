"""An engine step ends: its tokens reach the clients, and the replica goes on."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from simulation.engine_step import deliver
from simulation.replica import Step

if TYPE_CHECKING:
    from simulation.cluster import Cluster


class StepEnd(NamedTuple):
    """step: what its replica computed; ignored when the replica died meanwhile."""

    step: Step

    def apply(self, cluster: Cluster, now_s: float) -> None:
        """Deliver tokens, finish requests, hand prompts over, decide and begin the next step."""
        step = self.step
        replica = cluster.replicas[step.replica]
        if replica.step is not step:
            return
        replica.step = None
        tokens = cluster.requests.tokens
        deliver(now_s, step.emitted, step.rows, tokens.times, tokens.offsets, tokens.produced)
        for row in step.finished_rows:
            cluster.finish(row, step.replica, now_s)
        if replica.role != "both":
            cluster.transfers.step_ended(step.replica, now_s)
        cluster.boundary(now_s)
