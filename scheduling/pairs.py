"""Admission over a prefill and a decode replica together (disaggregated serving).

A pair can promise a request when the prefill replica can have the prompt done early enough for its KV to arrive, and
the decode replica can decode it beside all it has promised. Both sides are asked with the policy's own admission.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

from scheduling.batch_settings import DEFAULT_SETTINGS
from scheduling.policy import AdmissionPolicy, ReplicaView, RoutingPolicy
from scheduling.time_model import BatchShape
from scheduling.types import AdmissionDecision, Candidate

HELD_SHARE = 0.25
"""Share of the prompt that a worker must hold to be asked before routing has its say."""


class Route(NamedTuple):
    """Where a request could run, as indices of views.

    decode produces the tokens; prefill computes the prompt for it, None where decode does so itself.
    """

    decode: int
    prefill: int | None = None

    @property
    def first(self) -> int:
        """Who computes the prompt."""
        return self.decode if self.prefill is None else self.prefill


class Routes:
    """The routes over a fleet, as one decision sees them.

    Co-located replicas stand beside pairs. Each prefill worker is paired with the least loaded decode worker that is
    not taken yet, and as a second choice with the next one. A worker with one role serves a request alone where it
    has no counterpart, or when no pair can promise it.
    """

    ordered: list[Route]
    """Those that routing orders."""
    last: list[Route]
    """Those that are asked when all others decline."""

    def __init__(
        self, views: Sequence[ReplicaView], can_pair: Callable[[int, int], bool] = lambda prefill, decode: True
    ) -> None:
        """can_pair(prefill, decode): whether these two can exchange KV."""
        if _all_do_both(views):
            self.ordered, self.last = [Route(k) for k in range(len(views))], []
            return
        prefills = [k for k, view in enumerate(views) if view.role == "prefill"]
        decodes = sorted((k for k, view in enumerate(views) if view.role == "decode"), key=lambda k: load(views[k]))
        takers = {k: [d for d in decodes if can_pair(k, d)] for k in prefills}
        can_send = [k for k in prefills if takers[k]]
        wholes = [Route(k) for k, view in enumerate(views) if view.role == "both"]
        alone = [Route(k) for k in (*decodes, *prefills)]
        if not can_send:
            self.ordered, self.last = wholes + alone, []
            return
        pairs, others = (
            [Route(takers[k][(index + shift) % len(takers[k])], k) for index, k in enumerate(can_send)]
            for shift in (0, 1)
        )
        self.ordered = wholes + pairs
        self.last = [route for route in others[:2] if route not in pairs] + alone[:2]

    def ask_order(
        self, now_s: float, candidate: Candidate, views: Sequence[ReplicaView], routing: RoutingPolicy
    ) -> list[Route]:
        """Return the routes in the order in which one candidate asks them; views: with what they hold of its prompt.

        Whoever holds a good part of the prompt and can decode is asked first: what is left to compute there is less
        than what any other worker would have to compute or send. Then comes routing's order, then the last.
        """
        order = routing.order(now_s, candidate, [views[route.first] for route in self.ordered])
        routed = [self.ordered[k] for k in order] + self.last
        holders = [Route(k) for k in _holders(candidate, views)]
        return holders + [route for route in routed if route not in holders] if holders else routed

    def hopeful(self, candidate: Candidate, views: Sequence[ReplicaView]) -> Route | None:
        """Where a request that no plan has room for is likeliest to be in time; None without a replica that does both.

        Least prompt work goes first there: what is ahead of it, of all that is served by deadlines, and its own. Over
        a pair KV that no plan has room for would be in the way of promises.
        """

        def tokens(route: Route) -> int:
            view = views[route.decode]
            table, used = view.table, view.table.high_water
            by_deadline = table.active[:used] & (table.standard[:used] | table.hopeful[:used])
            own = candidate.prompt_tokens - view.cached_tokens.get(candidate.request_id, 0)
            return int(table.prefill_remaining[:used][by_deadline].sum()) + own

        return min((route for route in self.ordered if route.prefill is None), key=tokens, default=None)


def _holders(candidate: Candidate, views: Sequence[ReplicaView]) -> list[int]:
    """Workers that decode in a fleet of pairs and hold a good part of the prompt, the most first."""
    if _all_do_both(views):
        return []  # routing sees all there is to see
    held = [
        (-tokens, k)
        for k, view in enumerate(views)
        if view.role != "prefill"
        and (tokens := view.cached_tokens.get(candidate.request_id, 0)) >= HELD_SHARE * candidate.prompt_tokens
    ]
    return [k for _, k in sorted(held)]


def _all_do_both(views: Sequence[ReplicaView]) -> bool:
    return all(view.role == "both" for view in views)


def load(view: ReplicaView) -> tuple[float, str]:
    """Memory that is spoken for: what requests hold, and what they are expected to add."""
    table, limits = view.table, view.limits
    used = table.high_water
    coming = int(table.remaining_output[:used][table.active[:used]].sum()) / limits.block_size
    return (limits.total_blocks - view.free_blocks + coming) / limits.total_blocks, view.replica


@dataclass(frozen=True, slots=True)
class TransferModel:
    """How long the KV of a prompt takes from one engine to another: latency_s + tokens * per_token_s."""

    latency_s: float = 0.010
    per_token_s: float = 25e-6

    def duration_s(self, tokens: int) -> float:
        """Predicted time of one transfer."""
        return self.latency_s + tokens * self.per_token_s

    def scaled(self, factor: float) -> TransferModel:
        """Return the same model with all times multiplied."""
        if not factor > 0:
            raise ValueError(f"factor must be positive, not {factor}")
        return TransferModel(self.latency_s * factor, self.per_token_s * factor)


def next_step_s(view: ReplicaView) -> float:
    """Duration of a step in which every resident request decodes, and one more."""
    table = view.table
    used = table.high_water
    active = table.active[:used]
    requests = int(active.sum()) + 1
    kv_tokens = int(table.context[:used][active].sum())
    return view.model.duration_s(BatchShape(requests, requests, kv_tokens))


def taking_in_s(view: ReplicaView) -> float:
    """How long KV that comes to a replica may wait for its first token, seconds.

    The step that is under way then, which may compute a prompt of its own, and the step that takes the KV in. With
    half of that, a fifth of the promises over a pair of which both sides also served prompts alone were broken.
    """
    table, used = view.table, view.table.high_water
    tpots_s = table.tpot_s[:used][table.active[:used]]
    shortest_s = view.model.duration_s(BatchShape(1.0, 1.0))
    tightest_s = float(tpots_s.min()) if len(tpots_s) else 0.0
    return DEFAULT_SETTINGS.cap_s(shortest_s, tightest_s) + next_step_s(view)


def prefill_candidate(candidate: Candidate, view: ReplicaView, handover_s: float) -> Candidate:
    """The request as its prefill replica sees it: due earlier by what comes after, and gone after one token."""
    return replace(
        candidate,
        slo=replace(candidate.slo, ttft_s=candidate.slo.ttft_s - handover_s),
        cached_tokens=view.cached_tokens.get(candidate.request_id, 0),
        expected_output_tokens=1,
        max_output_tokens=1,
    )


def decode_candidate(candidate: Candidate) -> Candidate:
    """The request as its decode replica sees it: the prompt arrives, its last token is computed again."""
    return replace(candidate, cached_tokens=candidate.prompt_tokens - 1)


def decide_pair(
    now_s: float,
    prefill: ReplicaView,
    decode: ReplicaView,
    transfer: TransferModel,
    admission: AdmissionPolicy,
    candidates: Sequence[Candidate],
) -> AdmissionDecision:
    """Which candidates the pair can promise; a request is accepted when both sides can.

    The prefill side is asked first, since whoever misses there needs no memory on the other side. Leaving out one that
    the decode side declines keeps the rest feasible.
    """
    step_s = taking_in_s(decode)
    before = [
        prefill_candidate(candidate, prefill, transfer.duration_s(candidate.prompt_tokens) + step_s)
        for candidate in candidates
    ]
    prefill_s, decode_s = max(now_s, prefill.as_of_s), max(now_s, decode.as_of_s)
    first = admission.decide(prefill_s, prefill.table, prefill.free_blocks, prefill.model, prefill.limits, before)
    declined = {name: f"prefill on {prefill.replica}: {why}" for name, why in first.declined.items()}
    explain: dict[str, object] = {
        "prefill": first.explain,
        "transfer_s": {c.request_id: transfer.duration_s(c.prompt_tokens) for c in candidates},
        "taking_in_s": step_s,
    }
    wanted = set(first.accepted)
    after = [decode_candidate(candidate) for candidate in candidates if candidate.request_id in wanted]
    if not after:
        return AdmissionDecision((), declined, explain)
    second = admission.decide(decode_s, decode.table, decode.free_blocks, decode.model, decode.limits, after)
    declined |= {name: f"decode on {decode.replica}: {why}" for name, why in second.declined.items()}
    return AdmissionDecision(second.accepted, declined, {**explain, "decode": second.explain})
