"""Routing policies by name: which replicas are asked for a promise, in which order (ALGORITHMS section 8).

Each asks at most `limit` replicas (4 unless told otherwise), so that the size of the fleet does not slow a decision:
every replica is looked at in one cheap pass over its table, only those `limit` are planned.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from types import MappingProxyType

from scheduling.kernels.load import best_effort_blocks, replica_load
from scheduling.policy import ReplicaView, RoutingPolicy
from scheduling.types import Candidate

DEFAULT_LIMIT = 4
DEFAULT_ROUTING = "sequential"
SAME_TIER = 1e-6
"""Relative difference of TPOTs that are one tier."""
PREFIX_SHARE = 0.25
"""Share of the prompt that must be cached for a replica to be preferred for it."""


class Sequential:
    """The paper's: round-robin first hop, then the next replicas in turn."""

    def __init__(self, limit: int = DEFAULT_LIMIT) -> None:
        """Ask at most `limit` replicas per request."""
        self._limit = limit
        self._next = 0

    def order(self, now_s: float, candidate: Candidate, views: Sequence[ReplicaView]) -> Sequence[int]:
        """Start one replica further than for the request before."""
        if not views:
            return ()
        first = self._next % len(views)
        self._next = first + 1
        return [(first + hop) % len(views) for hop in range(min(self._limit, len(views)))]


class LeastLoaded:
    """All replicas that could hold the request, the one with the least promised work first."""

    def __init__(self, limit: int = DEFAULT_LIMIT) -> None:
        """Ask at most `limit` replicas per request."""
        self._limit = limit

    def order(self, now_s: float, candidate: Candidate, views: Sequence[ReplicaView]) -> Sequence[int]:
        """Least time until this prompt would be done; replicas without memory for it last."""
        keys = [(not _has_room(candidate, view), _finish_s(candidate, view), k) for k, view in enumerate(views)]
        return [key[-1] for key in sorted(keys)[: self._limit]]


class PrefixAffine:
    """Replicas that hold much of the prompt in their prefix cache, then the least loaded ones.

    Cached tokens are not prefill work, and a session finds its earlier rounds where it ran. Whoever holds most is asked
    first, however busy: its plan says no when it cannot keep the promise, and the next one is asked.
    """

    def __init__(self, limit: int = DEFAULT_LIMIT) -> None:
        """Ask at most `limit` replicas per request."""
        self._limit = limit

    def order(self, now_s: float, candidate: Candidate, views: Sequence[ReplicaView]) -> Sequence[int]:
        """Most of the prompt cached first, where that is a good part of it; then the shortest time until it is done."""
        keys = []
        for k, view in enumerate(views):
            cached = view.cached_tokens.get(candidate.request_id, 0)
            wanted = cached if cached >= PREFIX_SHARE * candidate.prompt_tokens else 0
            keys.append((-wanted, not _has_room(candidate, view), _finish_s(candidate, view), k))
        return [key[-1] for key in sorted(keys)[: self._limit]]


class Pack:
    """Like with like: the most loaded replica of the same TPOT that has time left, so that others stay free."""

    def __init__(self, limit: int = DEFAULT_LIMIT, full: float = 0.95) -> None:
        """Ask at most `limit` replicas; one whose decodes take more than `full` of its time comes last."""
        self._limit = limit
        self._full = full

    def order(self, now_s: float, candidate: Candidate, views: Sequence[ReplicaView]) -> Sequence[int]:
        """Replicas where the prompt can be done in time, fullest first; same tightest TPOT before others."""
        pace_s = candidate.slo.tpot_s
        if candidate.slo.thinking_tpot_s is not None:
            pace_s = min(pace_s, candidate.slo.thinking_tpot_s)
        keys = []
        for k, view in enumerate(views):
            backlog_s, share, tightest_s, count = _load(view)
            spare = max(1.0 - share, 0.01)
            done_s = now_s + (backlog_s + _prefill_s(candidate, view)) / spare
            hopeless = share > self._full or done_s > candidate.prefill_deadline_s or not _has_room(candidate, view)
            other_tier = count > 0 and abs(tightest_s - pace_s) > SAME_TIER * pace_s
            keys.append((hopeless, other_tier, -(backlog_s + share), k))
        return [key[-1] for key in sorted(keys)[: self._limit]]


def _load(view: ReplicaView) -> tuple[float, float, float, float]:
    table = view.table
    return replica_load(table.ints, table.floats, table.flags, table.high_water, view.model.array)


def _prefill_s(candidate: Candidate, view: ReplicaView) -> float:
    cached = min(view.cached_tokens.get(candidate.request_id, candidate.cached_tokens), candidate.prompt_tokens - 1)
    return view.model.zero_load_prefill_s(candidate.prompt_tokens - cached, view.limits.max_batch_tokens)


def _finish_s(candidate: Candidate, view: ReplicaView) -> float:
    """Seconds until this prompt would be done behind the promised work, beside its decodes."""
    backlog_s, share, _, _ = _load(view)
    return (backlog_s + _prefill_s(candidate, view)) / max(1.0 - share, 0.01)


def _has_room(candidate: Candidate, view: ReplicaView) -> bool:
    """Whether the prompt fits into free memory, best-effort work preempted."""
    table = view.table
    free = view.free_blocks + best_effort_blocks(table.ints, table.flags, table.high_water)
    return candidate.prompt_tokens <= free * view.limits.block_size


def _round_robin(limit: int) -> RoutingPolicy:
    return Sequential(1)


ROUTING: MappingProxyType[str, Callable[[int], RoutingPolicy]] = MappingProxyType(
    {
        "sequential": Sequential,
        "round-robin": _round_robin,
        "feasible-least-loaded": LeastLoaded,
        "prefix-affine": PrefixAffine,
        "pack": Pack,
    }
)
"""Name -> constructor. round-robin asks one replica only; sequential the next ones too (the paper)."""


def get(name: str = DEFAULT_ROUTING, limit: int = DEFAULT_LIMIT) -> RoutingPolicy:
    """Routing policy by name; ValueError names the ones there are."""
    if name not in ROUTING:
        raise ValueError(f"unknown routing policy {name!r}; known: {', '.join(ROUTING)}")
    return ROUTING[name](limit)
