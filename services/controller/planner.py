"""Puts requests to the policy: which replica can promise what."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import replace

from scheduling.asking import ask
from scheduling.pairs import decide_pair, taking_in_s
from scheduling.policy import AdmissionPolicy, Policy
from scheduling.promotion import promote
from scheduling.types import AdmissionDecision, Candidate
from services.controller.replica import Replica
from services.controller.request import LiveRequest
from services.controller.targets import Target, Targets, mirror_of
from services.controller.transfers import TransferTimes

log = logging.getLogger(__name__)

PER_DECISION = 10
"""The paper's bound on new requests in one plan; the rest wait for the next."""


class Planner:
    """One policy, asked for one replica after the other in the order that routing proposes."""

    def __init__(self, policy: Policy, relay_s: Callable[[], float]) -> None:
        """relay_s: time between engine and client, taken off deadlines."""
        self.policy = policy
        self.transfers = TransferTimes()
        self._relay_s = relay_s

    def engine_due_s(self, request: LiveRequest) -> float:
        """When the engine must have the first token, so that the client has it in time."""
        return request.first_due_s - self._relay_s()

    def ask(
        self,
        requests: Sequence[LiveRequest],
        replicas: Sequence[Replica],
        place: Callable[[LiveRequest, Target], None],
    ) -> list[tuple[LiveRequest, str]]:
        """Place those that can be promised; return the others with the reason of the last target asked."""
        if self.policy.gentle is None or len(replicas) == 1:
            return self._ask(requests, replicas, place, self.policy.admission_among(len(replicas)))
        declined = self._ask(requests, replicas, place, self.policy.gentle)
        # Where nobody hopes, gentle promises are all there are, and a second question has the same answer.
        requests, known = [request for request, _ in declined], [reason for _, reason in declined]
        return self._ask(requests, replicas, place, self.policy.admission, Target.hosts_hope, known)

    def hope(
        self,
        requests: Sequence[LiveRequest],
        replicas: Sequence[Replica],
        place: Callable[[LiveRequest, Target], None],
    ) -> None:
        """Place, without a promise, requests that can still be in time; nothing where batches keep only promises.

        First where a plan has room for one beside all that is served by deadlines, else where most hope is.
        """
        if self.policy.hope is None:
            return
        if len(replicas) > 1:
            requests = [request for request, _ in self._ask(requests, replicas, place, self.policy.hope)]
        for request in requests:
            target = Targets(replicas, [request]).hopeful(self._candidate(request))
            if target is not None:
                place(request, target)

    def _ask(
        self,
        requests: Sequence[LiveRequest],
        replicas: Sequence[Replica],
        place: Callable[[LiveRequest, Target], None],
        admission: AdmissionPolicy,
        only: Callable[[Target], bool] = lambda target: True,
        known: Sequence[str] = (),
    ) -> list[tuple[LiveRequest, str]]:
        """Place those that some target takes; only: which are asked; known: why each request was declined so far."""
        if not requests:
            return []  # gentle promises often take everybody, and views of all replicas are not free
        now_s = time.monotonic()
        targets, routing = Targets(replicas, requests), self.policy.routing
        asked = {request.request_id: request for request in requests}
        reasons = dict(zip(asked, known or ["no replica was asked"] * len(asked), strict=True))

        def plan(target: Target, group: list[str]) -> set[str]:
            if not only(target):
                return set()
            decision = self._decide([asked[name] for name in group], target, now_s, admission)
            accepted = set(decision.accepted)
            taken = {name for name in group if asked[name].wire_id in accepted}
            for name in group:
                reasons[name] = decision.declined.get(asked[name].wire_id, "the plan left it out")
            return taken

        hops = [(name, targets.ask_order(now_s, self._candidate(request), routing)) for name, request in asked.items()]
        declined = ask(hops, plan, lambda name, target: place(asked[name], target))
        return [(asked[name], reasons[name]) for name in declined]

    def first(self, request: LiveRequest, replicas: Sequence[Replica]) -> Target:
        """Where routing would send a request that is promised whatever the plan says."""
        targets = Targets(replicas, [request])
        first = targets.first(time.monotonic(), self._candidate(request), self.policy.routing)
        return first or min(targets.ordered(), key=lambda target: len(target.decode.placed.requests))

    def prefill_due_s(self, request: LiveRequest, target: Target) -> float:
        """When the prefill half of a hand-over must be done, so that the other half has the first token in time."""
        assert target.prefill is not None
        tokens = request.prompt_tokens + len(request.output)
        transfer_s = self.transfers.model(target.prefill.worker_id, target.decode.worker_id).duration_s(tokens)
        return (
            next_due_s(request, self.engine_due_s(request)) - transfer_s - taking_in_s(mirror_of(target.decode).view())
        )

    def promotable(self, requests: Sequence[LiveRequest], replica: Replica, replicas: int) -> list[LiveRequest]:
        """Best-effort requests on this replica, one of so many, that it can promise now."""
        now_s = time.monotonic()
        try:
            seen = mirror_of(replica).foreseen(now_s, self.policy.batching)
            decision = promote(
                seen.as_of_s,
                seen.table,
                seen.free_blocks,
                seen.model,
                seen.limits,
                self.policy.admission_among(replicas),
                [request.wire_id for request in requests],
            )
        except Exception:  # as above
            log.exception("policy %s failed", self.policy.name)
            return []
        accepted = set(decision.accepted)
        found = [request for request in requests if request.wire_id in accepted]
        for request in found:
            request.explain = _explanation(request, Target(replica), decision, now_s)
        return found

    def _decide(
        self, group: Sequence[LiveRequest], target: Target, now_s: float, admission: AdmissionPolicy
    ) -> AdmissionDecision:
        candidates = [self._candidate(request, mirror_of(target.first).cached_tokens(request)) for request in group]
        try:
            decision = self._plan(group, candidates, target, now_s, admission)
        except Exception as error:  # a policy that fails must cost promises, never requests
            log.exception("policy %s failed", self.policy.name)
            reason = f"policy {self.policy.name} failed ({error!r}); see the controller's log"
            decision = AdmissionDecision((), {candidate.request_id: reason for candidate in candidates})
        for request in group if admission is not self.policy.hope else ():
            request.explain = _explanation(request, target, decision, now_s)
        return decision

    def _plan(
        self,
        group: Sequence[LiveRequest],
        candidates: Sequence[Candidate],
        target: Target,
        now_s: float,
        admission: AdmissionPolicy,
    ) -> AdmissionDecision:
        if target.prefill is None:
            seen = mirror_of(target.decode).foreseen(now_s, self.policy.batching)
            return admission.decide(seen.as_of_s, seen.table, seen.free_blocks, seen.model, seen.limits, candidates)
        transfer = self.transfers.model(target.prefill.worker_id, target.decode.worker_id)
        prefill = mirror_of(target.prefill).foreseen(now_s, self.policy.batching, group)
        decode = mirror_of(target.decode).foreseen(now_s, self.policy.batching)
        return decide_pair(now_s, prefill, decode, transfer, admission, candidates)

    def _candidate(self, request: LiveRequest, cached_tokens: int = 0) -> Candidate:
        """Return the request as the planner sees it; its first token is the next one that is due.

        cached_tokens: what the replica that is asked has in its prefix cache.
        """
        due_s = next_due_s(request, self.engine_due_s(request))
        slo = request.slo
        thinking = slo.thinking_tpot_s if not request.thinking_done else None
        return Candidate(
            request_id=request.wire_id,
            arrival_s=request.arrival_s,
            prompt_tokens=request.prompt_tokens + len(request.output),
            slo=replace(slo, ttft_s=due_s - request.arrival_s, thinking_tpot_s=thinking),
            expected_output_tokens=max(1, request.expected_output_tokens - len(request.output)),
            max_output_tokens=max(1, request.max_output_tokens - len(request.output)),
            value=request.value,
            cached_tokens=cached_tokens,
            slo_class=request.slo_class,
            tenant=request.tenant,
            session_id=request.call.session_id,
        )


def _explanation(request: LiveRequest, target: Target, decision: AdmissionDecision, now_s: float) -> dict[str, object]:
    return {
        "replica": str(target),
        "accepted": request.wire_id in decision.accepted,
        "reason": decision.declined.get(request.wire_id, ""),
        "decided_after_s": now_s - request.arrival_s,
        "plan": decision.explain,
    }


def next_due_s(request: LiveRequest, first_due_s: float) -> float:
    """When the next token is due: the one it resumes with, or the first."""
    return request.next_due_s if request.output and request.next_due_s is not None else first_due_s
