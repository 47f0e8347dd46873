"""The controller of the simulated cluster: the same order of questions as services/controller, on virtual time.

New requests are decided together at the next step boundary of any replica, at once when a replica is idle: at most
PER_DECISION in one plan, earliest deadline first, replica after replica in the order that the routing policy gives.
Those that no replica can promise are sent at once, without a promise, where they have the best hope to be in time. What
a replica gives up before it has begun comes back and waits, first in first out, as best effort, is sent where few of
its kind wait, and is asked about again while it has missed nothing.
"""

from __future__ import annotations

import bisect
import heapq
import math
from collections import deque
from dataclasses import replace

from scheduling.lengths import LengthEstimator
from scheduling.pairs import Route, decide_pair
from scheduling.policy import AdmissionPolicy, Policy, ReplicaView
from scheduling.types import Candidate
from simulation.config import Lengths
from simulation.replica import Replica
from simulation.requests import NOWHERE, Requests
from simulation.targets import Target, Targets
from simulation.transfers import Transfers

PER_DECISION = 10
BEST_EFFORT_WAITING = 4
RETRY_FIRST_S, RETRY_LAST_S, RETRY_ROUND_S = 0.1, 2.0, 0.1


class Controller:
    """Admission, routing and the best-effort tier over simulated replicas."""

    def __init__(
        self,
        policy: Policy,
        requests: Requests,
        replicas: list[Replica],
        transfers: Transfers,
        lengths: Lengths,
        prefix_cache: bool,
    ) -> None:
        """Where everybody is promised everything, decode replicas are chosen after the prefill, and not asked here."""
        self._policy = policy
        self._requests = requests
        self._transfers = transfers
        self._replicas = [r for r in replicas if r.role != "decode" or not policy.admits_all]
        self._lengths = lengths
        self._prefix_cache = prefix_cache
        self._estimator = LengthEstimator()
        self._pending: deque[int] = deque()
        self._waiting: list[tuple[float, int]] = []
        self._retry_at: dict[int, float] = {}
        self._next_round_s = 0.0
        self.decisions = 0

    def offer(self, row: int) -> None:
        """A request arrived, or lost its replica."""
        self._pending.append(row)

    @property
    def waiting(self) -> int:
        """Requests that are on no replica."""
        return len(self._pending) + len(self._waiting)

    @property
    def next_retry_s(self) -> float:
        """The first step boundary after this moment may promise what was declined before."""
        return self._next_round_s if self._retry_at else math.inf

    def room_below(self, replica: Replica) -> int:
        """Waiting requests go there once fewer than this many without hope have yet to start; 0: none waits."""
        full = len(replica.table) >= replica.limits.max_batch_requests
        return 0 if full or not self._waiting else BEST_EFFORT_WAITING

    def decide(self, now_s: float) -> None:
        """Answer all new requests, retry and dispatch best-effort ones."""
        alive = [r for r in self._replicas if r.alive]
        if not alive:
            return
        while self._pending:
            batch = heapq.nsmallest(PER_DECISION, self._pending, key=self._due_s)
            for row in batch:
                self._pending.remove(row)
            if self._policy.admits_all:
                self._admit_all(batch, alive, now_s)
            else:
                self._declined(self._promise(batch, alive, now_s), alive, now_s)
        if not self._policy.admits_all:
            self._retry(alive, now_s)
            self._dispatch(alive, now_s)

    def given_back(self, row: int) -> None:
        """A replica has given a hopeful request up before it began."""
        self._requests.replica[row] = NOWHERE
        self._wait(row)

    def finished(self, row: int, slot_class: str) -> None:
        """Learn the length of a finished output."""
        self._retry_at.pop(row, None)
        if self._lengths is Lengths.QUANTILE:
            workload = self._requests.workload
            self._estimator.observe(
                slot_class, int(workload.output_tokens[row]), prompt_tokens=int(workload.prompt_tokens[row])
            )

    def expected_output(self, row: int, generated: int) -> int:
        """Output tokens still to come, as far as the planner may know."""
        workload = self._requests.workload
        if self._lengths is Lengths.ORACLE:
            return max(1, int(workload.output_tokens[row]) - generated)
        bound = int(self._requests.max_output[row])
        if self._lengths is Lengths.MAX_TOKENS:
            return max(1, bound - generated)
        slo_class = workload.classes[workload.class_index[row]]
        return self._estimator.remaining(
            slo_class.name, slo_class.length_quantile, generated, bound, prompt_tokens=int(workload.prompt_tokens[row])
        )

    def place(self, row: int, target: Replica, standard: bool, hopeful: bool = False) -> None:
        """Submit a request to a replica."""
        requests, workload = self._requests, self._requests.workload
        self._leave_queue(row)
        generated = int(requests.produced[row])
        thinking = int(workload.thinking_tokens[row])
        thinks = thinking > generated
        prompt = int(workload.prompt_tokens[row])
        cached = self.cached(row, target)
        if cached:
            target.cache.take(int(workload.session[row]))
            requests.cached[row] = cached
        blocks = cached // target.limits.block_size
        target.free_blocks -= blocks
        due_s = float(requests.arrival_s[row] + requests.ttft_s[row])
        slot = target.table.add(
            str(row),
            prompt_tokens=prompt,
            prefill_deadline_s=due_s,
            tpot_s=float(requests.thinking_tpot_s[row] if thinks else requests.tpot_s[row]),
            standard=standard,
            hopeful=hopeful,
            context=cached,
            kv_blocks=blocks,
            generated=generated,
            next_deadline_s=requests.next_due_s(row) if generated else None,
            answer_tpot_s=float(requests.tpot_s[row]),
            remaining_output=self.expected_output(row, generated),
            max_remaining_output=max(1, int(requests.max_output[row]) - generated),
            value=workload.classes[workload.class_index[row]].value,
            arrival_s=float(requests.arrival_s[row]),
            accept_rate=target.acceptance,
        )
        target.track(slot, row, int(workload.output_tokens[row]) - generated, max(0, thinking - generated))
        requests.replica[row] = target.index
        requests.promised[row] |= standard

    def cached(self, row: int, target: Replica) -> int:
        """Prompt tokens of a request that a replica's prefix cache holds."""
        if not self._prefix_cache:
            return 0
        workload = self._requests.workload
        shared = int(workload.shared_prefix_tokens[row])
        if not shared:
            return 0
        return target.cache.cached_tokens(int(workload.session[row]), shared, int(workload.prompt_tokens[row]))

    def _send(self, row: int, target: Target, standard: bool, hopeful: bool = False) -> None:
        """Submit a request to a replica or a pair."""
        if target.prefill is None:
            self.place(row, target.decode, standard, hopeful)
            return
        self._leave_queue(row)
        cached = self.cached(row, target.prefill)
        self._transfers.begin(row, target.prefill, target.decode, standard, cached, hopeful)
        self._requests.cached[row] = max(cached, int(self._requests.cached[row]))
        self._requests.promised[row] |= standard

    # ---- new requests

    def _admit_all(self, batch: list[int], alive: list[Replica], now_s: float) -> None:
        for row in batch:
            views = [r.view({str(row): self.cached(row, r)} if self._prefix_cache else None) for r in alive]
            order = self._policy.routing.order(now_s, self._candidate(row, None), views)
            self.place(row, alive[order[0]], True)

    def _promise(self, rows: list[int], alive: list[Replica], now_s: float) -> list[int]:
        """Place those that a replica or a pair can promise; return the others."""
        if self._policy.gentle is not None and len(alive) > 1:
            rows = self._ask(rows, alive, now_s, self._policy.gentle)
        return self._ask(rows, alive, now_s, self._policy.admission)

    def _ask(
        self, rows: list[int], alive: list[Replica], now_s: float, admission: AdmissionPolicy, hopeful: bool = False
    ) -> list[int]:
        """Place those that a replica or a pair takes, with a promise or hopeful; return the others."""
        views = [self._transfers.view(r, now_s) for r in alive]
        targets = Targets(alive, views)
        hops = {}
        candidates = {}
        for row in rows:
            candidates[row] = self._candidate(row, None)
            seen = self._views(row, alive, views)
            hops[row] = deque(targets.ask_order(now_s, candidates[row], seen, self._policy.routing))
        asking, declined = rows, []
        while asking:
            groups: dict[Route, list[int]] = {}
            for row in asking:
                if hops[row]:
                    groups.setdefault(hops[row].popleft(), []).append(row)
                else:
                    declined.append(row)
            asking = []
            for route, group in groups.items():
                target = targets.target(route)
                asked = [candidates[row] for row in group]
                if target.prefill is None and self._prefix_cache:
                    asked = [self._candidate(row, target.decode) for row in group]
                accepted = self._plan(asked, target, now_s, admission)
                for row in group:
                    if row in accepted:
                        self._send(row, target, not hopeful, hopeful)
                    else:
                        asking.append(row)
        return declined

    def _views(self, row: int, alive: list[Replica], views: list[ReplicaView]) -> list[ReplicaView]:
        """Views with what the prefix caches hold of a request."""
        if not self._prefix_cache:
            return views
        return [replace(v, cached_tokens={str(row): self.cached(row, r)}) for v, r in zip(views, alive, strict=True)]

    def _plan(self, candidates: list[Candidate], target: Target, now_s: float, admission: AdmissionPolicy) -> set[int]:
        self.decisions += 1
        decode = self._transfers.view(target.decode, now_s)
        if target.prefill is None:
            decision = admission.decide(
                decode.as_of_s, decode.table, decode.free_blocks, decode.model, decode.limits, candidates
            )
        else:
            held = {c.request_id: self.cached(int(c.request_id), target.prefill) for c in candidates}
            prefill = self._transfers.view(target.prefill, now_s, held)
            decision = decide_pair(now_s, prefill, decode, self._transfers.model, admission, candidates)
        return {int(request_id) for request_id in decision.accepted}

    def _candidate(self, row: int, target: Replica | None) -> Candidate:
        """The request as the planner sees it; its first token is the next one that is due."""
        requests, workload = self._requests, self._requests.workload
        generated = int(requests.produced[row])
        slo = requests.slo(row)
        arrival_s = float(requests.arrival_s[row])
        cached = 0
        if target is not None:
            if requests.replica[row] == target.index:
                slot = target.table.slot(str(row))
                cached = int(target.table.context[slot])
            else:
                cached = self.cached(row, target)
        if generated:
            slo = replace(slo, ttft_s=requests.next_due_s(row) - arrival_s)
            if generated >= workload.thinking_tokens[row]:
                slo = replace(slo, thinking_tpot_s=None)
        prompt = int(workload.prompt_tokens[row]) + generated
        slo_class = workload.classes[workload.class_index[row]]
        return Candidate(
            request_id=str(row),
            arrival_s=arrival_s,
            prompt_tokens=prompt,
            slo=slo,
            expected_output_tokens=self.expected_output(row, generated),
            max_output_tokens=max(1, int(requests.max_output[row]) - generated),
            value=slo_class.value,
            cached_tokens=min(cached, prompt - 1),
            slo_class=slo_class.name,
            session_id=str(workload.session[row]),
        )

    # ---- best-effort requests

    def _declined(self, rows: list[int], alive: list[Replica], now_s: float) -> None:
        """Send requests without a promise where they can still be in time, or let them wait."""
        for row in rows:
            self._retry_at[row] = now_s + RETRY_FIRST_S
            self._wait(row)
        rows = [row for row in rows if not self._requests.late[row] and self._due_s(row) > now_s]
        hope = self._policy.hope
        if hope is None or not rows:
            return
        if len(alive) > 1:
            rows = self._ask(rows, alive, now_s, hope, hopeful=True)
        for row in rows:
            views = self._views(row, alive, [self._transfers.view(r, now_s) for r in alive])
            targets = Targets(alive, views)
            route = targets.hopeful_route(self._candidate(row, None), views)
            if route is not None:
                self._send(row, targets.target(route), False, hopeful=True)

    def _wait(self, row: int) -> None:
        bisect.insort(self._waiting, (float(self._requests.arrival_s[row]), row))

    def _leave_queue(self, row: int) -> None:
        key = (float(self._requests.arrival_s[row]), row)
        at = bisect.bisect_left(self._waiting, key)
        if at < len(self._waiting) and self._waiting[at] == key:
            del self._waiting[at]

    def _dispatch(self, alive: list[Replica], now_s: float) -> None:
        """Send waiting best-effort requests where few of their kind wait."""
        if not self._waiting or all(self._room_on(replica) <= 0 for replica in alive):
            return
        targets = Targets(alive, [self._transfers.view(r, now_s) for r in alive]).ordered()
        rooms = [self._room(target) for target in targets]
        while self._waiting:
            best = max(range(len(targets)), key=lambda k: (rooms[k], -len(targets[k].decode.table), -k))
            if rooms[best] <= 0:
                return
            row = self._waiting[0][1]
            self._send(row, targets[best], False)
            rooms[best] = self._room(targets[best])

    def _room(self, target: Target) -> int:
        room = self._room_on(target.decode)
        return room if target.prefill is None else min(room, self._room_on(target.prefill))

    def _room_on(self, replica: Replica) -> int:
        return min(BEST_EFFORT_WAITING - replica.unstarted(), replica.limits.max_batch_requests - len(replica.table))

    def _retry(self, alive: list[Replica], now_s: float) -> None:
        """Ask again for best-effort requests that could still meet their SLOs."""
        if now_s < self._next_round_s or not self._retry_at:
            return
        self._next_round_s = now_s + RETRY_ROUND_S
        requests = self._requests
        due: list[int] = []
        for row in list(self._retry_at):
            if requests.finished[row] or requests.late[row] or self._due_s(row) <= now_s:
                del self._retry_at[row]
            elif self._retry_at[row] <= now_s:
                due.append(row)
        if not due:
            return
        waiting = heapq.nsmallest(PER_DECISION, (r for r in due if requests.replica[r] == NOWHERE), key=self._due_s)
        self._promise(waiting, alive, now_s)
        for target in alive:
            here = heapq.nsmallest(
                PER_DECISION, (r for r in due if requests.replica[r] == target.index), key=self._due_s
            )
            asked = [self._candidate(row, target) for row in here]
            for row in self._plan(asked, Target(target), now_s, self._policy.admission) if here else ():
                target.table.standard[target.table.slot(str(row))] = True
                requests.promised[row] = True
        for row in due:
            if requests.promised[row]:
                del self._retry_at[row]
            else:
                waited_s = now_s - float(requests.arrival_s[row])
                self._retry_at[row] = now_s + min(max(RETRY_FIRST_S, waited_s / 4), RETRY_LAST_S)

    def _due_s(self, row: int) -> float:
        return self._requests.next_due_s(row)
