"""Who is promised what: asks the policy for every new request, and again for best-effort ones while hope remains."""

from __future__ import annotations

import asyncio
import heapq
import logging
import time
from collections import deque
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

from scheduling.policy import Policy
from scheduling.types import Admission, AdmissionDecision, Candidate, OnMiss
from services.controller.best_effort import BestEffortQueue
from services.controller.contract import ApiError
from services.controller.mirror import ReplicaMirror
from services.controller.replica import Replica
from services.controller.replicas import ReplicaManager
from services.controller.request import LiveRequest

log = logging.getLogger(__name__)

PER_DECISION = 10
"""The paper's bound on new requests in one plan; the rest wait for the next."""
RETRY_FIRST_S = 0.1
RETRY_LAST_S = 2.0
RETRY_ROUND_S = 0.1


@dataclass(frozen=True, slots=True)
class AdmissionSettings:
    """best_effort_waiting: best-effort requests that may wait on one replica without having started.

    failover_wait_s: how long a request may wait for any replica after its own was lost, seconds.
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
        self._policy = policy
        self._replicas = replicas
        self._queue = queue
        self._listener = listener
        self._relay_s = relay_s
        self._weights = weights
        self._settings = settings
        self._pending: dict[str, LiveRequest] = {}
        self._wake = asyncio.Event()
        self._next_round_s = 0.0
        self._timer: asyncio.TimerHandle | None = None

    def offer(self, request: LiveRequest) -> None:
        """Ask for a promise, for a new request or one whose replica was lost."""
        self._pending[request.request_id] = request
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

    def pending(self) -> Collection[LiveRequest]:
        """Requests without an answer yet."""
        return self._pending.values()

    async def run(self) -> None:
        """Decide until cancelled."""
        while True:
            await self._wake.wait()
            self._wake.clear()
            while self._pending:
                batch = heapq.nsmallest(PER_DECISION, self._pending.values(), key=_due_s)
                for request in batch:
                    del self._pending[request.request_id]
                self._decide(batch)
                await asyncio.sleep(0)
            self._retry(time.monotonic())
            self._dispatch(time.monotonic())

    # ---- new requests

    def _decide(self, batch: Sequence[LiveRequest]) -> None:
        for model in {request.call.model for request in batch}:
            of_model = [request for request in batch if request.call.model == model]
            replicas = self._replicas.usable(model)
            if not replicas:
                for request in of_model:
                    self._no_replica(request)
            elif self._policy.admits_all:
                self._admit_all(of_model, replicas)
            else:
                for request, reason in self._ask(of_model, replicas):
                    self._declined(request, reason)

    def _admit_all(self, requests: Sequence[LiveRequest], replicas: Sequence[Replica]) -> None:
        for request in requests:
            now_s = time.monotonic()
            views = [_mirror(replica).view() for replica in replicas]
            order = self._policy.routing.order(now_s, self._candidate(request, None, now_s), views)
            target = replicas[order[0]] if order else min(replicas, key=lambda replica: len(replica.requests))
            self._place(request, target, Admission.STANDARD)

    def _ask(self, requests: Sequence[LiveRequest], replicas: Sequence[Replica]) -> list[tuple[LiveRequest, str]]:
        """Place those that a replica can promise; return the others with the reason."""
        now_s = time.monotonic()
        views = [_mirror(replica).view() for replica in replicas]
        hops = {
            request.request_id: deque(self._policy.routing.order(now_s, self._candidate(request, None, now_s), views))
            for request in requests
        }
        reasons = {request.request_id: "no replica was asked" for request in requests}
        asking, declined = list(requests), []
        while asking:
            groups: dict[int, list[LiveRequest]] = {}
            for request in asking:
                if hops[request.request_id]:
                    groups.setdefault(hops[request.request_id].popleft(), []).append(request)
                else:
                    declined.append((request, reasons[request.request_id]))
            asking = []
            for index, group in groups.items():
                accepted, decision = self._plan(group, replicas[index], now_s)
                for request in group:
                    if request.wire_id in accepted:
                        self._place(request, replicas[index], Admission.STANDARD)
                    else:
                        reasons[request.request_id] = decision.declined.get(request.wire_id, "the plan left it out")
                        asking.append(request)
        return declined

    def _plan(self, group: Sequence[LiveRequest], replica: Replica, now_s: float) -> tuple[set[str], AdmissionDecision]:
        mirror = _mirror(replica)
        decision = self._policy.admission.decide(
            now_s,
            mirror.table,
            mirror.free_blocks,
            mirror.model,
            mirror.limits,
            [self._candidate(request, replica, now_s) for request in group],
        )
        accepted = set(decision.accepted)
        for request in group:
            request.explain = {
                "replica": replica.worker_id,
                "accepted": request.wire_id in accepted,
                "reason": decision.declined.get(request.wire_id, ""),
                "decided_after_s": now_s - request.arrival_s,
                "plan": decision.explain,
            }
        return accepted, decision

    def _candidate(self, request: LiveRequest, replica: Replica | None, now_s: float) -> Candidate:
        """Return the request as the planner sees it; its first token is the next one that is due."""
        due_s = request.first_due_s - self._relay_s()
        prompt_tokens, cached_tokens = request.prompt_tokens + len(request.output), 0
        mirror = replica.mirror if replica is not None else None
        if mirror is not None and request.wire_id in mirror.table:
            cached_tokens = int(mirror.table.context[mirror.table.slot(request.wire_id)])
            request.next_due_s = mirror.next_due_s(request.wire_id)
        if request.output and request.next_due_s is not None:
            due_s = request.next_due_s
        slo = request.slo
        thinking = slo.thinking_tpot_s if not request.thinking_done else None
        return Candidate(
            request_id=request.wire_id,
            arrival_s=request.arrival_s,
            prompt_tokens=prompt_tokens,
            slo=replace(slo, ttft_s=due_s - request.arrival_s, thinking_tpot_s=thinking),
            expected_output_tokens=max(1, request.expected_output_tokens - len(request.output)),
            max_output_tokens=max(1, request.max_output_tokens - len(request.output)),
            value=request.value,
            cached_tokens=min(cached_tokens, prompt_tokens - 1),
            slo_class=request.slo_class,
            tenant=request.tenant,
            session_id=request.call.session_id,
        )

    def _place(self, request: LiveRequest, replica: Replica, admission: Admission) -> None:
        self._queue.remove(request)
        request.admission = admission
        replica.submit(request, request.first_due_s - self._relay_s())
        request.became(admission, request.reason)
        request.note(f"{admission.replace('_', ' ')} on {replica.worker_id}")
        self._answered(request)
        self._listener.placed(request)

    def _answered(self, request: LiveRequest) -> None:
        if not request.answered:
            request.answered = True
            self._listener.decided(request, time.monotonic() - request.arrival_s)

    def _declined(self, request: LiveRequest, reason: str) -> None:
        request.note(f"no promise: {reason}")
        if not request.attempts:
            if request.on_miss is OnMiss.REJECT:
                self._refuse(request, f"the SLOs cannot be promised now: {reason}")
                return
            if self._queue.full:
                self._refuse(
                    request, f"{self._queue.capacity} best-effort requests wait already, and no promise: {reason}"
                )
                return
        request.retry_at_s = time.monotonic() + RETRY_FIRST_S
        request.replica = ""
        request.became(Admission.BEST_EFFORT, reason)
        self._queue.push(request)
        self._answered(request)
        self._listener.queued(request)

    def _refuse(self, request: LiveRequest, message: str) -> None:
        retry_after_s = max(1.0, request.slo.ttft_s)
        self._answered(request)
        self._listener.refused(request, ApiError("RESOURCE_EXHAUSTED", message, retry_after_s=retry_after_s))

    def _no_replica(self, request: LiveRequest) -> None:
        why = self._replicas.why_none(request.call.model)
        if not request.attempts:
            self._listener.refused(request, ApiError("UNAVAILABLE", why, retry_after_s=2.0))
            return
        # Its replica was lost; another may come, and until then it waits like best-effort work.
        self._declined(request, why)

    # ---- best-effort requests

    def _dispatch(self, now_s: float) -> None:
        """Send waiting best-effort requests where few of their kind wait."""
        weights = self._weights()
        for model in self._queue.models():
            replicas = self._replicas.usable(model)
            while (request := self._queue.first(model, now_s, weights)) is not None:
                open_to = [(room, -len(r.requests), r.worker_id, r) for r in replicas if (room := self._room(r)) > 0]
                if not open_to:
                    break
                self._place(request, max(open_to)[-1], Admission.BEST_EFFORT)

    def _room(self, replica: Replica) -> int:
        """How many more best-effort requests this replica may be sent."""
        mirror = _mirror(replica)
        table = mirror.table
        not_started = int((table.active & ~table.standard & (table.context == 0)).sum())
        return min(self._settings.best_effort_waiting - not_started, mirror.limits.max_batch_requests - len(table))

    def _retry(self, now_s: float) -> None:
        """Ask again for best-effort requests that could still meet their SLOs."""
        if self._policy.admits_all:
            return
        if now_s < self._next_round_s:
            self._round_later()
            return
        hopeful = [request for request in self._queue if _hope(request, now_s)]
        resident = [
            (replica, request)
            for replica in self._replicas
            if replica.usable
            for request in replica.best_effort()
            if _hope(request, now_s)
        ]
        if hopeful or resident:
            self._next_round_s = now_s + RETRY_ROUND_S
            self._retry_waiting([request for request in hopeful if request.retry_at_s <= now_s], now_s)
            self._retry_resident([(r, q) for r, q in resident if q.retry_at_s <= now_s], now_s)
            self._round_later()

    def _round_later(self) -> None:
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(RETRY_ROUND_S, self._round)

    def _round(self) -> None:
        self._timer = None
        self._wake.set()

    def _retry_waiting(self, requests: list[LiveRequest], now_s: float) -> None:
        batch = heapq.nsmallest(PER_DECISION, requests, key=_due_s)
        for model in {request.call.model for request in batch}:
            replicas = self._replicas.usable(model)
            if replicas:
                for request, reason in self._ask([r for r in batch if r.call.model == model], replicas):
                    request.reason = reason
        _back_off(batch, now_s)

    def _retry_resident(self, placed: list[tuple[Replica, LiveRequest]], now_s: float) -> None:
        for replica in {replica.worker_id: replica for replica, _ in placed}.values():
            here = [request for at, request in placed if at is replica]
            batch = heapq.nsmallest(PER_DECISION, here, key=_due_s)
            accepted, _ = self._plan(batch, replica, now_s)
            for request in batch:
                if request.wire_id in accepted:
                    replica.promote(request, request.first_due_s - self._relay_s())
                    request.became(Admission.STANDARD)
                    request.note(f"promoted on {replica.worker_id}")
            _back_off(batch, now_s)


def _back_off(requests: Sequence[LiveRequest], now_s: float) -> None:
    for request in requests:
        waited_s = now_s - request.arrival_s
        request.retry_at_s = now_s + min(max(RETRY_FIRST_S, waited_s / 4), RETRY_LAST_S)


def _due_s(request: LiveRequest) -> float:
    return request.next_due_s if request.output and request.next_due_s is not None else request.first_due_s


def _hope(request: LiveRequest, now_s: float) -> bool:
    """A best-effort request that has missed nothing yet may still be promised everything."""
    return request.admission is Admission.BEST_EFFORT and not request.late and _due_s(request) > now_s


def _mirror(replica: Replica) -> ReplicaMirror:
    assert replica.mirror is not None, "only usable replicas are asked, and they have a mirror"
    return replica.mirror
