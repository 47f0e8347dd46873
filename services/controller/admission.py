"""Who is promised what: asks the policy for every new request, and sends what it says to whom."""

from __future__ import annotations

import asyncio
import heapq
import logging
import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Protocol

from scheduling.policy import Policy
from scheduling.types import Admission, OnMiss
from services.controller.best_effort import BestEffortQueue
from services.controller.contract import ApiError
from services.controller.leftovers import RETRY_FIRST_S, ROUND_S, Leftovers, can_hope, client_due_s
from services.controller.planner import PER_DECISION, Planner
from services.controller.replicas import ReplicaManager
from services.controller.request import LiveRequest
from services.controller.targets import Target
from services.controller.transfers import TransferTimes

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class AdmissionSettings:
    """best_effort_waiting: best-effort requests that may wait on one replica without having started.

    failover_wait_s: how long a request may wait for any replica where its own was lost, or no link stands, seconds.
    """

    best_effort_waiting: int = 4
    failover_wait_s: float = 30.0


class AdmissionListener(Protocol):
    """Who is told of decisions; every method returns at once."""

    def decided(self, request: LiveRequest, seconds: float) -> None:
        """A request got its first answer after this long."""
        ...

    def placed(self, request: LiveRequest) -> None:
        """A request went to a replica."""
        ...

    def promoted(self, request: LiveRequest) -> None:
        """A best-effort request was promised something after all."""
        ...

    def queued(self, request: LiveRequest) -> None:
        """A request waits in the best-effort queue."""
        ...

    def refused(self, request: LiveRequest, error: ApiError) -> None:
        """A request is not served."""
        ...


class AdmissionLoop:
    """One decision after the other, ten new requests at most in each, in order of their deadlines."""

    def __init__(
        self,
        policy: Policy,
        replicas: ReplicaManager,
        queue: BestEffortQueue,
        listener: AdmissionListener,
        relay_s: Callable[[], float],
        weights: Callable[[], dict[str, float]],
        settings: AdmissionSettings,
    ) -> None:
        """relay_s: time between engine and client, taken off deadlines. weights: of tenants."""
        self._planner = Planner(policy, relay_s)
        self._leftovers = Leftovers(
            self._planner, replicas, queue, weights, settings.best_effort_waiting, self._place, listener.promoted
        )
        self._replicas = replicas
        self._queue = queue
        self._listener = listener
        self._settings = settings
        self._pending: dict[str, LiveRequest] = {}
        self._wake = asyncio.Event()
        self._timer: asyncio.TimerHandle | None = None

    def offer(self, request: LiveRequest) -> None:
        """Ask for a promise, for a new request or one whose replica was lost."""
        self._pending[request.request_id] = request
        self._wake.set()

    def queue(self, request: LiveRequest) -> None:
        """Let a best-effort request wait for its turn on any replica."""
        self._queue.push(request)
        self._listener.queued(request)
        self._wake.set()

    def withdraw(self, request: LiveRequest) -> None:
        """Forget a request that waits for a decision or a replica; one that does not is ignored."""
        self._pending.pop(request.request_id, None)
        self._queue.remove(request)

    def capacity_changed(self) -> None:
        """Something ended or a replica came: waiting requests may have a chance now."""
        if self._queue or self._pending:
            self._wake.set()

    def expire(self, now_s: float) -> list[LiveRequest]:
        """Take out requests that have waited too long for any replica of their model."""
        deadline_s = now_s - self._settings.failover_wait_s
        expired = [
            request
            for request in self._queue
            if max(request.arrival_s, request.displaced_s) < deadline_s
            and not self._replicas.usable(request.call.model)
        ]
        for request in expired:
            self._queue.remove(request)
        return expired

    @property
    def transfers(self) -> TransferTimes:
        """How long KV takes between workers."""
        return self._planner.transfers

    def pending(self) -> Collection[LiveRequest]:
        """Requests without an answer yet."""
        return self._pending.values()

    async def run(self) -> None:
        """Decide until cancelled."""
        while True:
            await self._wake.wait()
            self._wake.clear()
            while self._pending:
                batch = heapq.nsmallest(PER_DECISION, self._pending.values(), key=client_due_s)
                for request in batch:
                    del self._pending[request.request_id]
                self._decide(batch)
                # Events of the workers come in between: the next decision is made on what they say.
                await asyncio.sleep(0)
            if self._leftovers.retry(time.monotonic()) and self._timer is None:
                self._timer = asyncio.get_running_loop().call_later(ROUND_S, self._next_round)
            self._leftovers.dispatch(time.monotonic())

    def _next_round(self) -> None:
        self._timer = None
        self._wake.set()

    def _decide(self, batch: Sequence[LiveRequest]) -> None:
        for model in {request.call.model for request in batch}:
            of_model = [request for request in batch if request.call.model == model]
            replicas = self._replicas.usable(model)
            if not replicas:
                for request in of_model:
                    self._no_replica(request)
            elif self._planner.policy.admits_all:
                for request in of_model:
                    self._place_promised(request, self._planner.first(request, replicas))
            else:
                declined = self._planner.ask(of_model, replicas, self._place_promised)
                waiting = [request for request, reason in declined if self._declined(request, reason)]
                now_s = time.monotonic()
                hopeful = [request for request in waiting if can_hope(request, now_s)]
                self._planner.hope(hopeful, replicas, self._place_hopeful)

    def _place_hopeful(self, request: LiveRequest, target: Target) -> None:
        request.hopeful = True
        self._place(request, target, Admission.BEST_EFFORT)

    def _place_promised(self, request: LiveRequest, target: Target) -> None:
        self._place(request, target, Admission.STANDARD)

    def _place(self, request: LiveRequest, target: Target, admission: Admission) -> None:
        self._queue.remove(request)
        request.admission = admission
        while target.remembers(request):
            request.epoch += 1
        due_s = self._planner.engine_due_s(request)
        if target.prefill is None:
            target.decode.placed.submit(request, due_s)
        else:
            handover = self._planner.transfers.handover(request, target)
            prefill_due_s = self._planner.prefill_due_s(request, target)
            target.decode.placed.submit(request, due_s, handover)
            target.prefill.placed.submit_prefill(request, prefill_due_s, handover)
        request.became(admission, request.reason)
        request.note(f"{admission.replace('_', ' ')} on {target}")
        self._answered(request)
        self._listener.placed(request)

    def _answered(self, request: LiveRequest) -> None:
        if not request.answered:
            request.answered = True
            self._listener.decided(request, time.monotonic() - request.arrival_s)

    def _declined(self, request: LiveRequest, reason: str) -> bool:
        """Let a request wait without a promise; False when it is not served."""
        request.note(f"no promise: {reason}")
        if not request.attempts:
            if request.on_miss is OnMiss.REJECT:
                self._refuse(request, f"the SLOs cannot be promised now: {reason}")
                return False
            if self._queue.full:
                self._refuse(
                    request, f"{self._queue.capacity} best-effort requests wait already, and no promise: {reason}"
                )
                return False
        request.retry_at_s = time.monotonic() + RETRY_FIRST_S
        request.replica = ""
        request.hopeful = False
        request.became(Admission.BEST_EFFORT, reason)
        self._answered(request)
        self.queue(request)
        return True

    def _refuse(self, request: LiveRequest, message: str) -> None:
        retry_after_s = max(1.0, request.slo.ttft_s)
        self._answered(request)
        self._listener.refused(request, ApiError("RESOURCE_EXHAUSTED", message, retry_after_s=retry_after_s))

    def _no_replica(self, request: LiveRequest) -> None:
        why = self._replicas.why_none(request.call.model)
        if not (request.attempts or self._replicas.awaited(request.call.model)):
            self._listener.refused(request, ApiError("UNAVAILABLE", why, retry_after_s=2.0))
            return
        # A replica was lost and another may come, or its link broke for a moment: it waits like best-effort work.
        self._declined(request, why)
