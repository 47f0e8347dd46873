"""The controller of the simulated cluster: the same order of questions as services/controller, on virtual time.

New requests are decided together at the next step boundary of any replica, at once when a replica is idle: at most
PER_DECISION in one plan, earliest deadline first, replica after replica in the order that the routing policy gives.
Those that no replica can promise are sent at once, without a promise, where they have the best hope to be in time. What
a replica gives up before it has begun comes back and waits, first in first out, as best effort, is sent where few of
its kind wait, and is asked about again while it has missed nothing.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable

from scheduling.asking import ask
from scheduling.pairs import Route, Routes, decide_pair
from scheduling.policy import AdmissionPolicy, Policy, ReplicaView
from scheduling.types import Candidate
from simulation.candidates import Candidates
from simulation.config import Lengths
from simulation.replica import Replica
from simulation.requests import NOWHERE, Requests
from simulation.targets import Target
from simulation.transfers import Transfers
from simulation.waiting import Waiting

PER_DECISION = 10
BEST_EFFORT_WAITING = 4

Asking = dict[int, Candidate]
"""Requests that are to be promised something, by row."""


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
        self._prefix_cache = prefix_cache
        self.candidates = Candidates(requests, lengths, prefix_cache)
        self._pending: deque[int] = deque()
        self._waiting = Waiting(requests)
        self._seen: tuple[list[ReplicaView], Routes] | None = None
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
        return self._waiting.next_round_s

    def room_below(self, replica: Replica) -> int:
        """Waiting requests go there once fewer than this many without hope have yet to start; 0: none waits."""
        full = len(replica.table) >= replica.limits.max_batch_requests
        return 0 if full or not self._waiting else BEST_EFFORT_WAITING

    def decide(self, now_s: float) -> None:
        """Answer all new requests, retry and dispatch best-effort ones."""
        alive = [r for r in self._replicas if r.alive]
        if not alive:
            return
        self._seen = None
        while self._pending:
            batch = self._first_due(self._pending)
            for row in batch:
                self._pending.remove(row)
            if self._policy.admits_all:
                self._admit_all(batch, alive, now_s)
            else:
                asking = {row: self.candidates.of(row) for row in batch}
                declined = self._promise(asking, alive, now_s)
                if declined:
                    self._declined(declined, alive, now_s)
        if not self._policy.admits_all:
            self._retry(alive, now_s)
            self._dispatch(alive, now_s)

    def given_back(self, row: int) -> None:
        """A replica has given a hopeful request up before it began."""
        self._requests.replica[row] = NOWHERE
        self._waiting.wait(row)

    def finished(self, row: int, slo_class: str) -> None:
        """A request is done; learn the length of its output."""
        self._waiting.settled(row)
        self.candidates.finished(row, slo_class)

    def place(self, row: int, target: Replica, standard: bool, hopeful: bool = False) -> None:
        """Submit a request to a replica."""
        requests, workload = self._requests, self._requests.workload
        self._waiting.leave(row)
        self._seen = None
        generated = int(requests.produced[row])
        thinking = int(workload.thinking_tokens[row])
        thinks = thinking > generated
        prompt = int(workload.prompt_tokens[row])
        cached = self.candidates.cached(row, target)
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
            remaining_output=self.candidates.expected_output(row, generated),
            max_remaining_output=max(1, int(requests.max_output[row]) - generated),
            value=workload.classes[workload.class_index[row]].value,
            arrival_s=float(requests.arrival_s[row]),
            accept_rate=target.acceptance,
        )
        target.track(slot, row, int(workload.output_tokens[row]) - generated, max(0, thinking - generated))
        requests.replica[row] = target.index
        requests.promised[row] |= standard

    def _send(self, row: int, target: Target, standard: bool, hopeful: bool = False) -> None:
        """Submit a request to a replica or a pair."""
        if target.prefill is None:
            self.place(row, target.decode, standard, hopeful)
            return
        self._waiting.leave(row)
        self._seen = None
        cached = self.candidates.cached(row, target.prefill)
        self._transfers.begin(row, target.prefill, target.decode, standard, cached, hopeful)
        self._requests.cached[row] = max(cached, int(self._requests.cached[row]))
        self._requests.promised[row] |= standard

    # ---- new requests

    def _admit_all(self, batch: list[int], alive: list[Replica], now_s: float) -> None:
        for row in batch:
            views = [r.view({str(row): self.candidates.cached(row, r)} if self._prefix_cache else None) for r in alive]
            order = self._policy.routing.order(now_s, self.candidates.of(row), views)
            self.place(row, alive[order[0]], True)

    def _promise(self, asking: Asking, alive: list[Replica], now_s: float) -> Asking:
        """Place those that a replica or a pair can promise; return the others."""
        if self._policy.gentle is None or len(alive) == 1:
            return self._ask(asking, alive, now_s, self._policy.admission_among(len(alive)))
        asking = self._ask(asking, alive, now_s, self._policy.gentle)
        # Where nobody hopes, gentle promises are all there are, and a second question has the same answer.
        return self._ask(asking, alive, now_s, self._policy.admission, only=Target.hosts_hope)

    def _ask(
        self,
        asking: Asking,
        alive: list[Replica],
        now_s: float,
        admission: AdmissionPolicy,
        hopeful: bool = False,
        only: Callable[[Target], bool] | None = None,
    ) -> Asking:
        """Place those that a replica or a pair takes, with a promise or hopeful; return the others.

        only: who is asked.
        """
        if not asking:
            return asking
        views, routes = self._look(alive, now_s)

        def plan(route: Route, group: list[int]) -> set[int]:
            target = Target.of(route, alive)
            if only is not None and not only(target):
                return set()
            if target.prefill is None and self._prefix_cache:
                asked = [self.candidates.of(row, target.decode) for row in group]
            else:
                asked = [asking[row] for row in group]
            return self._plan(asked, target, self._look(alive, now_s)[0][route.decode], now_s, admission)

        routing = self._policy.routing
        hops = [
            (row, routes.ask_order(now_s, candidate, self._views(row, alive, views), routing))
            for row, candidate in asking.items()
        ]
        left = ask(hops, plan, lambda row, route: self._send(row, Target.of(route, alive), not hopeful, hopeful))
        return {row: asking[row] for row in left}

    def _look(self, alive: list[Replica], now_s: float) -> tuple[list[ReplicaView], Routes]:
        """The replicas as the questions of one moment see them, and the routes; anew once a request was placed."""
        if self._seen is None:
            views = [self._transfers.view(r, now_s) for r in alive]
            self._seen = views, Routes(views)
        return self._seen

    def _views(self, row: int, alive: list[Replica], views: list[ReplicaView]) -> list[ReplicaView]:
        """Views with what the prefix caches hold of a request."""
        if not self._prefix_cache:
            return views
        return [
            v._replace(cached_tokens={str(row): self.candidates.cached(row, r)})
            for v, r in zip(views, alive, strict=True)
        ]

    def _plan(
        self,
        candidates: list[Candidate],
        target: Target,
        decode: ReplicaView,
        now_s: float,
        admission: AdmissionPolicy,
    ) -> set[int]:
        self.decisions += 1
        if target.prefill is None:
            decision = admission.decide(
                decode.as_of_s, decode.table, decode.free_blocks, decode.model, decode.limits, candidates
            )
        else:
            held = {c.request_id: self.candidates.cached(int(c.request_id), target.prefill) for c in candidates}
            prefill = self._transfers.view(target.prefill, now_s, held)
            decision = decide_pair(now_s, prefill, decode, self._transfers.model, admission, candidates)
        return {int(request_id) for request_id in decision.accepted}

    # ---- best-effort requests

    def _declined(self, asking: Asking, alive: list[Replica], now_s: float) -> None:
        """Send requests without a promise where they can still be in time, or let them wait."""
        for row in asking:
            self._waiting.declined(row, now_s)
        hope, late = self._policy.hope, self._requests.late
        if hope is None:
            return
        asking = {row: new for row, new in asking.items() if not late[row] and self._due_s(row) > now_s}
        if len(alive) > 1:
            asking = self._ask(asking, alive, now_s, hope, hopeful=True)
        for row, candidate in asking.items():
            views, routes = self._look(alive, now_s)
            route = routes.hopeful(candidate, self._views(row, alive, views))
            if route is not None:
                self._send(row, Target.of(route, alive), False, hopeful=True)

    def _dispatch(self, alive: list[Replica], now_s: float) -> None:
        """Send waiting best-effort requests where few of their kind wait."""
        if not self._waiting:
            return
        for replica in alive:
            if replica.unstarted() < BEST_EFFORT_WAITING and self._room_on(replica) > 0:
                break
        else:
            return
        targets = [Target.of(route, alive) for route in self._look(alive, now_s)[1].ordered]
        rooms = [self._room(target) for target in targets]
        while self._waiting:
            best = max(range(len(targets)), key=lambda k: (rooms[k], -len(targets[k].decode.table), -k))
            if rooms[best] <= 0:
                return
            self._send(self._waiting.first, targets[best], False)
            rooms[best] = self._room(targets[best])

    def _room(self, target: Target) -> int:
        room = self._room_on(target.decode)
        return room if target.prefill is None else min(room, self._room_on(target.prefill))

    def _room_on(self, replica: Replica) -> int:
        return min(BEST_EFFORT_WAITING - replica.unstarted(), replica.limits.max_batch_requests - len(replica.table))

    def _retry(self, alive: list[Replica], now_s: float) -> None:
        """Ask again for best-effort requests that could still meet their SLOs."""
        requests, due = self._requests, self._waiting.due(now_s)
        if not due:
            return
        waiting = self._first_due(row for row in due if requests.replica[row] == NOWHERE)
        self._promise({row: self.candidates.of(row) for row in waiting}, alive, now_s)
        on: dict[int, list[int]] = {}
        for row in due:
            on.setdefault(int(requests.replica[row]), []).append(row)
        for k, target in enumerate(alive):
            if target.index not in on:
                continue
            asked = [self.candidates.of(row, target) for row in self._first_due(on[target.index])]
            view = self._look(alive, now_s)[0][k]
            for row in self._plan(asked, Target(target), view, now_s, self._policy.admission_among(len(alive))):
                target.promise(target.table.slot(str(row)))
                requests.promised[row] = True
        self._waiting.asked(due, now_s)

    def _first_due(self, rows: Iterable[int]) -> list[int]:
        """Those whose next tokens are due first, as many as one plan is asked for."""
        return sorted(rows, key=self._due_s)[:PER_DECISION]

    def _due_s(self, row: int) -> float:
        return self._requests.next_due_s(row)
