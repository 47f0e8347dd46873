"""What follows from what happens on workers: tokens go out, lost requests go elsewhere, waiting ones get a chance."""

from __future__ import annotations

from collections.abc import Callable, Collection

from protos.slos.v1 import common_pb2, worker_pb2
from services.controller.failover import Failover
from services.controller.metrics import Metrics
from services.controller.relay import Relay
from services.controller.replica import Replica
from services.controller.request import LiveRequest


class WorkerEvents:
    """Implements ReplicaEvents."""

    def __init__(
        self,
        relay: Relay,
        failover: Failover,
        metrics: Metrics,
        find: Callable[[str], Replica | None],
        capacity_changed: Callable[[], None],
    ) -> None:
        """find: replica by worker id. capacity_changed: told when waiting requests may have a chance."""
        self._relay = relay
        self._failover = failover
        self._metrics = metrics
        self._find = find
        self._capacity_changed = capacity_changed

    def stepped(self, replica: Replica, step: worker_pb2.Step, ended_s: float) -> None:
        """Hand the tokens of a step out."""
        if step.predicted_us > 0:
            self._metrics.step_error.observe(step.duration_us / step.predicted_us)
        if self._relay.stepped(replica, step, ended_s):
            self._capacity_changed()

    def rejected(self, replica: Replica, request: LiveRequest, rejected: worker_pb2.Rejected) -> None:
        """Try another worker, or tell the client what is wrong with the request."""
        self._free_prefill(request)
        self._failover.rejected(replica, request, rejected)

    def displaced(self, replica: Replica, requests: Collection[LiveRequest], reason: str) -> None:
        """Let requests go on elsewhere."""
        for request in requests:
            self._free_prefill(request)
        self._failover.displaced(replica, requests, reason)

    def prefilled(self, replica: Replica, request: LiveRequest, update: worker_pb2.RequestStep, ended_s: float) -> None:
        """The KV of a prompt is on its way, or its half has failed."""
        if update.finish_reason == common_pb2.FINISH_REASON_LENGTH:
            request.prefilled_s = ended_s
            if replica.mirror is not None:
                replica.mirror.handed_over(request, update.cached_tokens)
            decode = self._find(request.replica)
            if decode is not None and update.kv_handle:
                decode.placed.hand_over(request, update.kv_handle)
        else:
            request.prefill_replica = ""
            self.prefill_lost(replica, request, update.error or "its half of the request ended early")
        self._capacity_changed()

    def prefill_lost(self, replica: Replica, request: LiveRequest, reason: str) -> None:
        """Ask for another place, unless the decode worker has gone on by itself."""
        decode = self._find(request.replica)
        if request.finished or request.output or decode is None:
            return
        decode.placed.cancel(request)
        self._failover.displaced(replica, [request], reason)

    def changed(self, replica: Replica) -> None:
        """A replica may take waiting work now."""
        self._capacity_changed()

    def _free_prefill(self, request: LiveRequest) -> None:
        prefill = self._find(request.prefill_replica)
        if prefill is not None:
            prefill.placed.cancel_prefill(request)
