"""What a replica is good for, and who it tells what happens to the requests on it."""

from __future__ import annotations

from collections.abc import Collection
from enum import StrEnum
from typing import TYPE_CHECKING, Protocol

from protos.slos.v1 import worker_pb2
from services.controller.request import LiveRequest

if TYPE_CHECKING:
    from services.controller.replica import Replica


class ReplicaState(StrEnum):
    """What a replica is good for, in the admin API's words."""

    CONNECTING = "connecting"
    READY = "ready"
    DRAINING = "draining"
    DRAINED = "drained"
    REFUSED = "refused"
    LOST = "lost"


class ReplicaEvents(Protocol):
    """Who a replica tells what happens to requests; every method returns at once."""

    def stepped(self, replica: Replica, step: worker_pb2.Step, ended_s: float) -> None:
        """An engine step ended; the mirror has not been moved yet."""
        ...

    def rejected(self, replica: Replica, request: LiveRequest, rejected: worker_pb2.Rejected) -> None:
        """The worker did not take a request; it is no longer placed there."""
        ...

    def displaced(self, replica: Replica, requests: Collection[LiveRequest], reason: str) -> None:
        """The replica no longer holds these requests, or not all of their tokens; they are no longer placed there."""
        ...

    def prefilled(self, replica: Replica, request: LiveRequest, update: worker_pb2.RequestStep, ended_s: float) -> None:
        """The half that computes a prompt for another worker has ended."""
        ...

    def prefill_lost(self, replica: Replica, request: LiveRequest, reason: str) -> None:
        """The half that computes a prompt for another worker will not be done here."""
        ...

    def changed(self, replica: Replica) -> None:
        """State or capacity of the replica changed."""
        ...
