"""A prompt's KV has arrived on its decode replica."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from simulation.transfers import HandOver

if TYPE_CHECKING:
    from simulation.cluster import Cluster


@dataclass(frozen=True, slots=True)
class TransferDone:
    """hand_over: the prompt; target: index of the decode replica."""

    hand_over: HandOver
    target: int

    def apply(self, cluster: Cluster, now_s: float) -> None:
        """Let the request decode there."""
        cluster.transfers.done(self.hand_over, self.target, now_s)
        cluster.boundary(now_s)
