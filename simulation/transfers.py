"""KV on its way from prefill to decode replicas (disaggregated clusters).

A prompt's KV stays on the prefill replica until its decode replica has room and has received it: the decode side pulls
when it can. Policies that promise to everybody hand over as DistServe does: the prefill replica gives out the first
token, and the decode replica with the least work takes the request. Admission over pairs chooses both replicas at
once, and the decode replica gives out every token, the last prompt token computed there again, as in the controller.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from scheduling.pairs import TransferModel, taking_in_s
from scheduling.policy import ReplicaView
from scheduling.request_table import RequestTable
from simulation.replica import Replica, Step
from simulation.requests import IN_TRANSIT

if TYPE_CHECKING:
    from simulation.cluster import Cluster

LEG_OUTPUT = 2
"""Output tokens that a prefill half pretends to have left: it never finishes by itself."""


@dataclass(frozen=True, slots=True)
class HandOver:
    """A prompt that is done on one replica and wanted on another; blocks: what each side holds for it.

    whole: the prefill replica gave out no token.
    """

    row: int
    source: int
    blocks: int
    context: int
    next_deadline_s: float
    tpot_s: float
    standard: bool
    whole: bool


@dataclass(slots=True)
class Coming:
    """A request that is meant for a decode replica and not there yet; blocks: reserved for it already."""

    target: int
    standard: bool
    hopeful: bool
    blocks: int = 0


class Transfers:
    """Finished prefills by decode replica, first in first out, and what is promised to come."""

    def __init__(self, cluster: Cluster) -> None:
        """Nothing is on its way."""
        self._cluster = cluster
        profile = cluster.profile
        self.model = TransferModel(profile.link.latency_s, profile.kv_bytes_per_token / profile.link.bytes_per_s)
        self._leaving: dict[int, list[HandOver]] = {}
        self._queues: dict[int, deque[HandOver]] = {r.index: deque() for r in cluster.replicas if r.role == "decode"}
        self._coming_blocks: dict[int, int] = dict.fromkeys(self._queues, 0)
        self._coming: dict[int, Coming] = {}

    # ---- admission over pairs

    def begin(
        self, row: int, prefill: Replica, decode: Replica, standard: bool, cached: int, hopeful: bool = False
    ) -> None:
        """Let one replica compute a prompt for another; cached: prompt tokens that the first one holds."""
        requests, workload = self._cluster.requests, self._cluster.workload
        prompt = int(workload.prompt_tokens[row])
        due_s = float(requests.arrival_s[row] + requests.ttft_s[row])
        due_s -= self.model.duration_s(prompt) + taking_in_s(self.view(decode, self._cluster.now_s))
        blocks = cached // prefill.limits.block_size
        if cached:
            prefill.cache.take(int(workload.session[row]))
            prefill.free_blocks -= blocks
        slot = prefill.table.add(
            str(row),
            prompt_tokens=prompt,
            prefill_deadline_s=due_s,
            tpot_s=float(requests.tpot_s[row]),
            standard=standard,
            hopeful=hopeful,
            context=cached,
            kv_blocks=blocks,
            remaining_output=1,
            value=workload.classes[workload.class_index[row]].value,
            arrival_s=float(requests.arrival_s[row]),
        )
        prefill.track(slot, row, LEG_OUTPUT, 0)
        self._coming[row] = Coming(decode.index, standard, hopeful)
        requests.replica[row] = IN_TRANSIT

    def view(self, replica: Replica, now_s: float, cached_tokens: dict[str, int] | None = None) -> ReplicaView:
        """Return a replica as admission sees it: from its next boundary on, with all that is promised to come."""
        seen = replica.view(cached_tokens, replica.planning_time_s(now_s))
        if not self._coming:
            return seen
        mine = [(row, coming) for row, coming in self._coming.items() if coming.target == replica.index]
        if not mine:
            return seen
        table = replica.table.copy()
        for row, coming in mine:
            due_s = float(self._cluster.requests.arrival_s[row] + self._cluster.requests.ttft_s[row])
            # Whoever comes too late is promised nothing any more, and must not make every plan infeasible.
            if due_s <= now_s:
                coming.standard = coming.hopeful = False
            self._enter(table, row, coming)
        return seen._replace(table=table)

    def _enter(self, table: RequestTable, row: int, coming: Coming) -> int:
        """Put a request whose prompt was computed elsewhere into a decode replica's table."""
        requests, workload = self._cluster.requests, self._cluster.workload
        prompt = int(workload.prompt_tokens[row])
        thinks = workload.thinking_tokens[row] > 0
        return table.add(
            str(row),
            prompt_tokens=prompt,
            prefill_deadline_s=float(requests.arrival_s[row] + requests.ttft_s[row]),
            tpot_s=float(requests.thinking_tpot_s[row] if thinks else requests.tpot_s[row]),
            standard=coming.standard,
            hopeful=coming.hopeful,
            prefill_remaining=1,
            context=prompt - 1,
            kv_blocks=coming.blocks,
            answer_tpot_s=float(requests.tpot_s[row]),
            remaining_output=self._cluster.controller.candidates.expected_output(row, 0),
            max_remaining_output=max(1, int(requests.max_output[row])),
            value=workload.classes[workload.class_index[row]].value,
            arrival_s=float(requests.arrival_s[row]),
        )

    def forget(self, row: int) -> None:
        """A prompt will not be computed for anybody; one that nobody waits for is ignored."""
        self._coming.pop(row, None)

    # ---- hand-over

    def collect(self, replica: Replica, step: Step) -> Step:
        """Take the prompts that a step completes out of the table; their blocks stay held.

        Returns the step without the tokens that are not given out there.
        """
        table = replica.table
        silent = []
        for number, slot in enumerate(step.emitted[0, : len(step.rows)]):
            row = replica.row_of(int(slot))
            leg = self._coming.get(row)
            if leg is None and (row in step.finished_rows or self.pairs):
                continue  # it runs here to its end
            if leg is not None:
                silent.append(number)
                # Only its decode replica can tell whether the first token is late.
                self._cluster.requests.late[row] = False
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
                    leg is not None,
                )
            )
            self._cluster.requests.preemptions[row] += table.preemptions[slot]
            table.remove(table.request_id(int(slot)))
        if not silent:
            return step
        return step._replace(rows=np.delete(step.rows, silent), emitted=np.delete(step.emitted, silent, axis=1))

    @property
    def pairs(self) -> bool:
        """Whether admission chooses both replicas of a pair."""
        return not self._cluster.policy.admits_all

    @property
    def waiting(self) -> int:
        """Requests and blocks that are on their way."""
        return len(self._coming) + sum(map(len, self._leaving.values())) + sum(self._coming_blocks.values())

    def step_ended(self, replica: int, now_s: float) -> None:
        """Queue what the step completed for its decode replica, by default the one with the least work."""
        for hand_over in self._leaving.pop(replica, []):
            coming = self._coming.get(hand_over.row)
            target = coming.target if coming else min(self._queues, key=lambda r: (self._load(r), r))
            self._coming_blocks[target] += hand_over.blocks
            self._queues[target].append(hand_over)
        self.pull(now_s)

    def pull(self, now_s: float) -> None:
        """Start the transfers that decode replicas have room for; what their prefix caches hold is not sent again."""
        from simulation.events.transfer_done import TransferDone

        for index, queue in self._queues.items():
            target = self._cluster.replicas[index]
            while queue and target.alive:
                hand_over = next((h for h in queue if self._promised(h)), queue[0])
                if not self._has_room(target, hand_over):
                    break
                queue.remove(hand_over)
                cached = self._cluster.controller.candidates.cached(hand_over.row, target)
                if cached:
                    target.cache.take(int(self._cluster.workload.session[hand_over.row]))
                target.free_blocks -= hand_over.blocks
                target.cache.shrink_to(target.free_blocks)
                if hand_over.row in self._coming:
                    self._coming[hand_over.row].blocks = hand_over.blocks
                size = (hand_over.context - cached) * self._cluster.profile.kv_bytes_per_token
                self._cluster.schedule(now_s + self._cluster.profile.link.seconds(size), TransferDone(hand_over, index))

    def done(self, hand_over: HandOver, target: int, now_s: float) -> None:
        """The decode replica has the KV: the request goes on there, the source's blocks are free."""
        cluster = self._cluster
        self._coming_blocks[target] -= hand_over.blocks
        source, replica = cluster.replicas[hand_over.source], cluster.replicas[target]
        source.free_blocks += hand_over.blocks
        cluster.remember(source, hand_over.row, hand_over.context)
        requests, workload, row = cluster.requests, cluster.workload, hand_over.row
        generated = int(requests.produced[row])
        if hand_over.whole:
            coming = self._coming.pop(row)
            slot = self._enter(replica.table, row, coming)
        else:
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
                remaining_output=cluster.controller.candidates.expected_output(row, generated),
                max_remaining_output=max(1, int(requests.max_output[row]) - generated),
                arrival_s=float(requests.arrival_s[row]),
                accept_rate=replica.acceptance,
            )
        replica.table.accept_rate[slot] = replica.acceptance
        thinking = max(0, int(workload.thinking_tokens[row]) - generated)
        replica.track(slot, row, int(workload.output_tokens[row]) - generated, thinking)
        requests.replica[row] = target

    def _promised(self, hand_over: HandOver) -> bool:
        coming = self._coming.get(hand_over.row)
        return hand_over.standard if coming is None else coming.standard

    def _load(self, index: int) -> int:
        replica = self._cluster.replicas[index]
        return replica.limits.total_blocks - replica.free_blocks + self._coming_blocks[index]

    def _has_room(self, target: Replica, hand_over: HandOver) -> bool:
        # One more block per running request, so that those already decoding can go on growing.
        wanted = hand_over.blocks + len(target.table) + 1
        coming = self._coming.get(hand_over.row)
        if coming is not None and coming.standard and not target.busy:
            _make_room(target, wanted)
        # With nobody there nobody grows, and waiting would be for ever.
        return target.free_blocks >= (wanted if len(target.table) else hand_over.blocks)


def _make_room(target: Replica, wanted: int) -> None:
    """Preempt best-effort requests, the last one first, until so many blocks are free, where that can be reached."""
    table = target.table
    victims = [int(slot) for slot in table.slots() if not table.standard[slot] and table.kv_blocks[slot] > 0]
    if target.free_blocks + int(table.kv_blocks[victims].sum()) < wanted:
        return
    while target.free_blocks < wanted:
        target.preempt(victims.pop())
