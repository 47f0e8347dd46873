"""Where a request can be served: by one worker, or by one that computes its prompt and one that decodes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

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

    def __str__(self) -> str:
        if self.prefill is None:
            return self.decode.worker_id
        return f"{self.prefill.worker_id} and {self.decode.worker_id}"


def targets(replicas: Sequence[Replica]) -> tuple[list[Target], list[Target]]:
    """Return the targets among usable replicas that routing orders, and those that are asked when these decline.

    Co-located replicas stand beside pairs. Each prefill worker is paired with the least loaded decode worker that is
    not taken yet, and as a second choice with the next one. A worker with one role serves a request alone where it
    has no counterpart, or when no pair can promise it.
    """
    both = [replica for replica in replicas if replica.info.role == "both"]
    prefills = [replica for replica in replicas if replica.info.role == "prefill"]
    decodes = sorted((replica for replica in replicas if replica.info.role == "decode"), key=_load)
    can_send = [replica for replica in prefills if replica.info.kv_address]
    can_take = [replica for replica in decodes if replica.info.kv_address]
    wholes = [Target(replica) for replica in both]
    alone = [Target(replica) for replica in (*decodes, *prefills)]
    if not can_send or not can_take:
        return wholes + alone, []
    pairs = [Target(can_take[index % len(can_take)], prefill) for index, prefill in enumerate(can_send)]
    others = [Target(can_take[(index + 1) % len(can_take)], prefill) for index, prefill in enumerate(can_send)]
    return wholes + pairs, (others[:2] if len(can_take) > 1 else []) + alone[:2]


def mirror_of(replica: Replica) -> ReplicaMirror:
    """Mirror of a replica that takes work."""
    assert replica.mirror is not None, "only usable replicas are asked, and they have a mirror"
    return replica.mirror


def _load(replica: Replica) -> tuple[float, str]:
    """Memory that is spoken for: what requests hold, and what they are expected to add."""
    mirror = mirror_of(replica)
    table = mirror.table
    used = table.high_water
    active = table.active[:used]
    coming = int(table.remaining_output[:used][active].sum()) / mirror.limits.block_size
    return (mirror.limits.total_blocks - mirror.free_blocks + coming) / mirror.limits.total_blocks, replica.worker_id
