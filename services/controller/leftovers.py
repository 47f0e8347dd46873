"""Best-effort work: sends it where there is room, and has it promised after all while hope remains."""

from __future__ import annotations

import heapq
from collections.abc import Callable, Sequence

from scheduling.types import Admission
from services.controller.best_effort import BestEffortQueue
from services.controller.planner import PER_DECISION, Planner, next_due_s
from services.controller.replica import Replica
from services.controller.replicas import ReplicaManager
from services.controller.request import LiveRequest
from services.controller.targets import Target, Targets, mirror_of

RETRY_FIRST_S = 0.1
RETRY_LAST_S = 2.0
ROUND_S = 0.1
"""Waiting requests are put to the policy again this often at most, each of them ever more rarely."""


class Leftovers:
    """Dispatch and promotion of the requests in one best-effort queue and of those on replicas."""

    def __init__(
        self,
        planner: Planner,
        replicas: ReplicaManager,
        queue: BestEffortQueue,
        weights: Callable[[], dict[str, float]],
        waiting_per_replica: int,
        place: Callable[[LiveRequest, Target, Admission], None],
        promoted: Callable[[LiveRequest], None],
    ) -> None:
        """weights: of tenants. waiting_per_replica: requests sent to a replica that it has not started, at most."""
        self._planner = planner
        self._replicas = replicas
        self._queue = queue
        self._weights = weights
        self._waiting_per_replica = waiting_per_replica
        self._place = place
        self._promoted = promoted
        self._next_round_s = 0.0

    def dispatch(self, now_s: float) -> None:
        """Send waiting requests where few of their kind wait."""
        weights = self._weights()
        for model in self._queue.models():
            choices = Targets(self._replicas.usable(model)).ordered()
            while (request := self._queue.first(model, now_s, weights)) is not None:
                open_to = [target for target in choices if self._room(target) > 0]
                if not open_to:
                    break
                best = max(open_to, key=lambda target: (self._room(target), -len(target.decode.placed.requests)))
                self._place(request, best, Admission.BEST_EFFORT)

    def _room(self, target: Target) -> int:
        """How many more best-effort requests may be sent there."""
        room = self._room_on(target.decode)
        return room if target.prefill is None else min(room, self._room_on(target.prefill))

    def _room_on(self, replica: Replica) -> int:
        mirror = mirror_of(replica)
        table = mirror.table
        not_started = int((table.active & ~table.standard & ~table.hopeful & (table.context == 0)).sum())
        return min(self._waiting_per_replica - not_started, mirror.limits.max_batch_requests - len(table))

    def retry(self, now_s: float) -> bool:
        """Ask again for requests that could still meet their SLOs; True when another round may help."""
        if self._planner.policy.admits_all:
            return False
        if now_s < self._next_round_s:
            return True
        waiting = [request for request in self._queue if can_hope(request, now_s)]
        resident = [
            (replica, hopeful)
            for replica in self._replicas
            if replica.usable and (hopeful := [r for r in replica.placed.best_effort() if can_hope(r, now_s)])
        ]
        if not waiting and not resident:
            return False
        self._next_round_s = now_s + ROUND_S
        self._retry_waiting(_due(waiting, now_s), now_s)
        for replica, requests in resident:
            self._retry_resident(replica, _due(requests, now_s), now_s)
        return True

    def _retry_waiting(self, requests: list[LiveRequest], now_s: float) -> None:
        for model in {request.call.model for request in requests}:
            replicas = self._replicas.usable(model)
            if not replicas:
                continue
            asked = [request for request in requests if request.call.model == model]
            declined = self._planner.ask(asked, replicas, self._place_promised)
            for request, reason in declined:
                request.reason = reason
            for request in asked:
                if request.admission is Admission.STANDARD:
                    self._promoted(request)
        _back_off(requests, now_s)

    def _place_promised(self, request: LiveRequest, target: Target) -> None:
        self._place(request, target, Admission.STANDARD)

    def _retry_resident(self, replica: Replica, requests: list[LiveRequest], now_s: float) -> None:
        replicas = len(self._replicas.usable(replica.info.model))
        for request in self._planner.promotable(requests, replica, replicas):
            replica.placed.promote(request, self._planner.engine_due_s(request))
            request.became(Admission.STANDARD)
            request.note(f"promoted on {replica.worker_id}")
            self._promoted(request)
        _back_off(requests, now_s)


def client_due_s(request: LiveRequest) -> float:
    """When the client is owed the next token, as far as the controller keeps it."""
    return next_due_s(request, request.first_due_s)


def _due(requests: Sequence[LiveRequest], now_s: float) -> list[LiveRequest]:
    """Those whose turn it is to be asked for again."""
    return heapq.nsmallest(PER_DECISION, (r for r in requests if r.retry_at_s <= now_s), key=client_due_s)


def can_hope(request: LiveRequest, now_s: float) -> bool:
    """A best-effort request that has missed nothing yet may still be promised everything."""
    if request.late or request.admission is not Admission.BEST_EFFORT:
        return False
    if request.prefill_replica and not request.prefilled_s:
        return False  # half of it is elsewhere
    if request.replica and request.output:
        return True  # its replica's mirror knows when the next token is due
    alone_s = 0.0 if request.replica else request.zero_load_s
    return client_due_s(request) > now_s + alone_s


def _back_off(requests: Sequence[LiveRequest], now_s: float) -> None:
    for request in requests:
        waited_s = now_s - request.arrival_s
        request.retry_at_s = now_s + min(max(RETRY_FIRST_S, waited_s / 4), RETRY_LAST_S)
