"""Where a request can be served: by one worker, or by one that computes its prompt and one that decodes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from protos.slos.v1 import worker_pb2
from scheduling.pairs import Route, Routes
from scheduling.policy import RoutingPolicy
from scheduling.types import Candidate
from services.controller.mirror import ReplicaMirror
from services.controller.replica import Replica
from services.controller.request import LiveRequest
from services.controller.submission import leg_id


@dataclass(frozen=True, slots=True)
class Target:
    """decode produces the tokens; prefill computes the prompt's KV for it, None where decode does so itself."""

    decode: Replica
    prefill: Replica | None = None

    @property
    def first(self) -> Replica:
        """The worker that computes the prompt."""
        return self.prefill or self.decode

    def remembers(self, request: LiveRequest) -> bool:
        """Whether one of the workers may still hold an earlier request under the name that this one would get."""
        if request.wire_id in self.decode.placed.leaving:
            return True
        return self.prefill is not None and leg_id(request) in self.prefill.placed.leaving

    def hosts_hope(self) -> bool:
        """Whether a hopeful request is on one of the workers."""
        workers = (self.decode,) if self.prefill is None else (self.decode, self.prefill)
        return any(mirror_of(worker).table.hosts_hope() for worker in workers)

    def __str__(self) -> str:
        if self.prefill is None:
            return self.decode.worker_id
        return f"{self.prefill.worker_id} and {self.decode.worker_id}"


class Targets:
    """The targets among usable replicas, as one decision sees them; workers whose KV differs in form are no pair."""

    def __init__(self, replicas: Sequence[Replica], requests: Sequence[LiveRequest] = ()) -> None:
        """requests: those to be decided, whose prefixes workers may hold."""
        self._replicas = replicas
        self._views = [mirror_of(replica).view(requests) for replica in replicas]
        self._routes = Routes(
            self._views, lambda prefill, decode: not why_not_paired(replicas[prefill].info, replicas[decode].info)
        )

    def ordered(self) -> list[Target]:
        """Those that routing orders."""
        return [self._target(route) for route in self._routes.ordered]

    def ask_order(self, now_s: float, candidate: Candidate, routing: RoutingPolicy) -> list[Target]:
        """Return all targets in the order in which one candidate asks them."""
        return [self._target(route) for route in self._routes.ask_order(now_s, candidate, self._views, routing)]

    def first(self, now_s: float, candidate: Candidate, routing: RoutingPolicy) -> Target | None:
        """Return the target that routing itself would take, if it takes any."""
        ordered = self._routes.ordered
        order = routing.order(now_s, candidate, [self._views[route.first] for route in ordered])
        return self._target(ordered[order[0]]) if order else None

    def hopeful(self, candidate: Candidate) -> Target | None:
        """Return where a request has the best hope for which no plan has room; None where there is nothing."""
        route = self._routes.hopeful(candidate, self._views)
        return None if route is None else self._target(route)

    def _target(self, route: Route) -> Target:
        prefill = None if route.prefill is None else self._replicas[route.prefill]
        return Target(self._replicas[route.decode], prefill)


def why_not_paired(prefill: worker_pb2.WorkerInfo, decode: worker_pb2.WorkerInfo) -> str:
    """Say for people why one worker cannot hand KV over to another; empty when it can."""
    for info in (prefill, decode):
        if not info.kv_address:
            return f"{info.worker_id} has no KV exchange: start it with --kv-exchange"
    if prefill.kv_layout != decode.kv_layout:
        return (
            f"{prefill.worker_id} has KV of the form [{prefill.kv_layout}], {decode.worker_id} [{decode.kv_layout}]: "
            "start both with the same settings"
        )
    return ""


def why_alone(replica: Replica, replicas: Sequence[Replica]) -> str:
    """Say for people why no worker of the other role can hand over to or from this one; empty when one can.

    Empty also where there is no worker of the other role: then nothing is wrong with this one.
    """
    role = replica.info.role
    if role == "prefill":
        reasons = [why_not_paired(replica.info, other.info) for other in replicas if other.info.role == "decode"]
    elif role == "decode":
        reasons = [why_not_paired(other.info, replica.info) for other in replicas if other.info.role == "prefill"]
    else:
        return ""
    return reasons[0] if reasons and all(reasons) else ""


def mirror_of(replica: Replica) -> ReplicaMirror:
    """Mirror of a replica that takes work."""
    assert replica.mirror is not None, "only usable replicas are asked, and they have a mirror"
    return replica.mirror
