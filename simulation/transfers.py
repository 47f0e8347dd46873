"""KV on its way from prefill to decode replicas (disaggregated clusters).

A prompt's KV stays on the prefill replica until the decode replica that the policy chose has room and has received
it: as in DistServe, the decode side pulls when it can.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING

from simulation.replica import Replica, Step

if TYPE_CHECKING:
    from simulation.cluster import Cluster


@dataclass(frozen=True, slots=True)
class HandOver:
    """A prompt that is done on one replica and wanted on another; blocks: what each side holds for it."""

    row: int
    source: int
    blocks: int
    context: int
    next_deadline_s: float
    tpot_s: float
    standard: bool


class Transfers:
    """Finished prefills by decode replica, first in first out."""

    def __init__(self, cluster: Cluster) -> None:
        """Nothing is on its way."""
        self._cluster = cluster
        self._leaving: dict[int, list[HandOver]] = {}
        self._queues: dict[int, deque[HandOver]] = {r.index: deque() for r in cluster.replicas if r.role == "decode"}
        self._coming: dict[int, int] = dict.fromkeys(self._queues, 0)

    def collect(self, replica: Replica, step: Step) -> None:
        """Take the prompts that the step completes out of the table; their blocks stay held."""
        table = replica.table
        for slot in step.emitted[0]:
            row = replica.row_of(int(slot))
            if row in step.finished_rows:
                continue
            blocks = int(table.kv_blocks[slot])
            self._leaving.setdefault(replica.index, []).append(
                HandOver(
                    row,
                    replica.index,
                    blocks,
                    int(table.context[slot]),
                    float(table.next_deadline_s[slot]),
                    float(table.tpot_s[slot]),
                    bool(table.standard[slot]),
                )
            )
            self._cluster.requests.preemptions[row] += table.preemptions[slot]
            table.remove(table.request_id(int(slot)))

    def step_ended(self, replica: int, now_s: float) -> None:
        """Queue what the step completed, on the decode replica with the least work."""
        for hand_over in self._leaving.pop(replica, []):
            target = min(self._queues, key=lambda r: (self._load(r), r))
            self._coming[target] += hand_over.blocks
            self._queues[target].append(hand_over)
        self.pull(now_s)

    def pull(self, now_s: float) -> None:
        """Start the transfers that decode replicas have room for."""
        from simulation.events.transfer_done import TransferDone

        for index, queue in self._queues.items():
            target = self._cluster.replicas[index]
            while queue and target.alive and self._has_room(target, queue[0]):
                hand_over = queue.popleft()
                target.free_blocks -= hand_over.blocks
                size = hand_over.context * self._cluster.profile.kv_bytes_per_token
                self._cluster.schedule(now_s + self._cluster.profile.link.seconds(size), TransferDone(hand_over, index))

    def done(self, hand_over: HandOver, target: int, now_s: float) -> None:
        """The decode replica has the KV: the request goes on there, the source's blocks are free."""
        cluster = self._cluster
        self._coming[target] -= hand_over.blocks
        source, replica = cluster.replicas[hand_over.source], cluster.replicas[target]
        source.free_blocks += hand_over.blocks
        requests, workload, row = cluster.requests, cluster.workload, hand_over.row
        generated = int(requests.produced[row])
        slot = replica.table.add(
            str(row),
            prompt_tokens=int(workload.prompt_tokens[row]),
            prefill_deadline_s=float(requests.arrival_s[row] + requests.ttft_s[row]),
            tpot_s=hand_over.tpot_s,
            standard=hand_over.standard,
            prefill_remaining=0,
            context=hand_over.context,
            kv_blocks=hand_over.blocks,
            generated=generated,
            next_deadline_s=hand_over.next_deadline_s,
            answer_tpot_s=float(requests.tpot_s[row]),
            remaining_output=cluster.controller.expected_output(row, generated),
            max_remaining_output=max(1, int(requests.max_output[row]) - generated),
            arrival_s=float(requests.arrival_s[row]),
            accept_rate=replica.acceptance,
        )
        thinking = max(0, int(workload.thinking_tokens[row]) - generated)
        replica.track(slot, row, int(workload.output_tokens[row]) - generated, thinking)
        requests.replica[row] = target

    def _load(self, index: int) -> int:
        replica = self._cluster.replicas[index]
        return replica.limits.total_blocks - replica.free_blocks + self._coming[index]

    def _has_room(self, target: Replica, hand_over: HandOver) -> bool:
        # One more block per running request, so that those already decoding can go on growing.
        return target.free_blocks >= hand_over.blocks + len(target.table) + 1
