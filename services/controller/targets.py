"""Where a request can be served: by one worker, or by one that computes its prompt and one that decodes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from protos.slos.v1 import worker_pb2
from scheduling.pairs import Route, load, routes
from services.controller.mirror import ReplicaMirror
from services.controller.replica import Replica
from services.controller.request import LiveRequest
from services.controller.submission import leg_id

PREFIX_WORTH = 0.25
"""A decode worker that holds all of a request is preferred to one with so much more of its memory free (share)."""


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

    def __str__(self) -> str:
        if self.prefill is None:
            return self.decode.worker_id
        return f"{self.prefill.worker_id} and {self.decode.worker_id}"


def targets(replicas: Sequence[Replica]) -> tuple[list[Target], list[Target]]:
    """Return the targets among usable replicas that routing orders, and those that are asked when these decline.

    Co-located replicas stand beside pairs. Each prefill worker is paired with the least loaded decode worker that is
    not taken yet, and as a second choice with the next one; workers whose KV differs in form are never paired. A worker
    with one role serves a request alone where it has no counterpart, or when no pair can promise it.
    """
    ordered, last = routes(
        [mirror_of(replica).view() for replica in replicas],
        lambda prefill, decode: not why_not_paired(replicas[prefill].info, replicas[decode].info),
    )

    def target(route: Route) -> Target:
        return Target(replicas[route.decode], None if route.prefill is None else replicas[route.prefill])

    return [target(route) for route in ordered], [target(route) for route in last]


def with_prefix(request: LiveRequest, order: Sequence[Target], replicas: Sequence[Replica]) -> list[Target]:
    """Return the targets in this order, each pair after the one whose decode worker holds more of the request.

    What it holds need not be sent, and takes no memory a second time. That is worth a certain difference in load.
    """
    tokens = request.prompt_tokens + len(request.output)
    worth = {
        replica: _load(replica) - PREFIX_WORTH * held / tokens
        for replica in replicas
        if replica.info.role == "decode" and (held := mirror_of(replica).cached_tokens(request))
    }
    if not worth:
        return list(order)
    found: list[Target] = []
    for target in order:
        if target.prefill is not None:
            own = worth.get(target.decode, _load(target.decode))
            better = [decode for decode in _takers(target.prefill, list(worth)) if worth[decode] < own]
            if better:
                found.append(Target(min(better, key=worth.__getitem__), target.prefill))
        found.append(target)
    return list(dict.fromkeys(found))


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


def _takers(prefill: Replica, decodes: Sequence[Replica]) -> list[Replica]:
    return [decode for decode in decodes if not why_not_paired(prefill.info, decode.info)]


def mirror_of(replica: Replica) -> ReplicaMirror:
    """Mirror of a replica that takes work."""
    assert replica.mirror is not None, "only usable replicas are asked, and they have a mirror"
    return replica.mirror


def _load(replica: Replica) -> float:
    """Memory that is spoken for, as a share of all."""
    return load(mirror_of(replica).view())[0]
