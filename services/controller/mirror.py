"""The controller's picture of one replica, moved by the same events that carry the tokens."""

from __future__ import annotations

import time
from collections.abc import Iterable

from protos.slos.v1 import worker_pb2
from scheduling.foresight import after_step
from scheduling.policy import BatchPolicy, ReplicaView
from scheduling.request_table import RequestTable
from scheduling.time_model import TimeModel
from scheduling.types import Admission, EngineLimits
from services.controller.prefix import PrefixIndex, block_chain
from services.controller.request import LiveRequest


def limits_of(info: worker_pb2.WorkerInfo) -> EngineLimits:
    """Limits of a worker's engine, in the planner's words."""
    return EngineLimits(
        max_batch_tokens=info.max_batch_tokens,
        max_batch_requests=info.max_batch_requests,
        block_size=info.block_size,
        total_blocks=info.kv_blocks,
        max_model_len=info.max_model_len,
        max_spec_tokens=max(1, info.max_spec_tokens),
    )


class ReplicaMirror:
    """RequestTable, free blocks and time model of one replica, never older than the tokens seen."""

    def __init__(self, replica: str, info: worker_pb2.WorkerInfo) -> None:
        """Start with an empty table; ValueError when the worker's time model cannot be read."""
        self.replica = replica
        self.role = info.role or "both"
        self.table = RequestTable()
        self.limits = limits_of(info)
        self.free_blocks = self.limits.total_blocks
        self.model = TimeModel.from_json(info.time_model_json)
        self._step_began_s = 0.0
        self._joined_s: dict[str, float] = {}
        self._arriving: set[str] = set()
        self.prefixes = PrefixIndex(self.limits.block_size, self.limits.total_blocks) if info.prefix_caching else None

    def set_margin(self, margin: float) -> None:
        """Plan with this safety factor on predicted times."""
        self.model = self.model.with_margin(margin)

    def set_model(self, model: TimeModel) -> None:
        """Plan with this time model, and the safety factor in force."""
        self.model = model.with_margin(self.model.margin)

    def view(self, requests: Iterable[LiveRequest] = ()) -> ReplicaView:
        """Return what routing and admission take, for these candidates; it shares the table."""
        cached = {request.wire_id: held for request in requests if (held := self.cached_tokens(request))}
        return ReplicaView(self.replica, self.table, self.free_blocks, self.model, self.limits, self.role, cached)

    def foreseen(self, now_s: float, batching: BatchPolicy, requests: Iterable[LiveRequest] = ()) -> ReplicaView:
        """Return the view as of the first moment at which a new request can join a step."""
        seen = self.view(requests)
        absent = [self.table.slot(name) for name in self._joined_s.keys() | self._arriving if name in self.table]
        if len(self.table) == len(absent):
            return seen._replace(as_of_s=now_s)
        self.table.active[absent] = False
        try:
            plan = batching.plan(self._step_began_s, self.table, self.free_blocks, self.model, self.limits)
        finally:
            self.table.active[absent] = True
        end_s = max(now_s, self._step_began_s + plan.predicted_s)
        table, free_blocks = after_step(self.table, self.free_blocks, plan, end_s, self.limits.block_size)
        return seen._replace(table=table, free_blocks=free_blocks, as_of_s=end_s)

    def cached_tokens(self, request: LiveRequest) -> int:
        """Tokens of a request that this replica would not have to compute; at least one is always computed."""
        if self.prefixes is None or not len(self.prefixes):
            return 0
        tokens = request.prompt_tokens + len(request.output)
        return min(self.prefixes.held_tokens(request.chain(self.limits.block_size)), tokens - 1)

    def stepped(self, step: worker_pb2.Step, ended_s: float) -> None:
        """Take what a step says of the engine as a whole; the next one began when it ended."""
        self.free_blocks = step.free_blocks
        self._step_began_s = ended_s
        self._joined_s = {name: joined_s for name, joined_s in self._joined_s.items() if joined_s > ended_s}
        if self.prefixes is not None:
            self.prefixes.computed(step.batch_tokens)

    def prefilled(self, request: LiveRequest, cached_tokens: int) -> None:
        """Learn from a request's first token what the prefix cache held and holds now."""
        if self.prefixes is not None:
            chain = request.chain(self.limits.block_size)
            self.prefixes.forget(chain, cached_tokens)
            self.prefixes.add(chain, self.free_blocks)

    def handed_over(self, request: LiveRequest, cached_tokens: int) -> None:
        """Learn from the end of a prefill half what the prefix cache held and holds now: the prompt at least."""
        if self.prefixes is not None:
            chain = block_chain(request.call.token_ids, self.limits.block_size)
            self.prefixes.forget(chain, cached_tokens)
            self.prefixes.add(chain, self.free_blocks)

    def ended(self, request: LiveRequest) -> None:
        """Learn from a request's end; its last token was never read, so the KV of that one is not there."""
        if self.prefixes is not None:
            self.prefixes.add(block_chain(request.tokens()[:-1], self.limits.block_size), self.free_blocks)

    def add(self, request: LiveRequest, first_due_s: float, arrives: bool = False) -> None:
        """Enter a request that is being submitted; first_due_s is the due time that the engine is given.

        arrives: the KV of the prompt comes from another worker; only its last token is computed here.
        """
        thinking_tpot_s = request.slo.thinking_tpot_s
        thinking = thinking_tpot_s is not None and not request.thinking_done
        tokens = request.prompt_tokens + len(request.output)
        self._joins(request.wire_id)
        if arrives:
            self._arriving.add(request.wire_id)
        self.table.add(
            request.wire_id,
            prompt_tokens=request.prompt_tokens,
            prefill_deadline_s=first_due_s,
            tpot_s=thinking_tpot_s if thinking and thinking_tpot_s is not None else request.slo.tpot_s,
            standard=request.admission is Admission.STANDARD,
            hopeful=request.hopeful,
            generated=len(request.output),
            prefill_remaining=1 if arrives else tokens - self.cached_tokens(request),
            context=tokens - 1 if arrives else 0,
            next_deadline_s=request.next_due_s,
            answer_tpot_s=request.slo.tpot_s,
            remaining_output=max(1, request.expected_output_tokens - len(request.output)),
            max_remaining_output=max(1, request.max_output_tokens - len(request.output)),
            value=request.value,
            arrival_s=request.arrival_s,
        )

    def add_prefill(self, request: LiveRequest, name: str, first_due_s: float) -> None:
        """Enter the half of a request that computes its prompt for another worker."""
        tokens = request.prompt_tokens + len(request.output)
        self._joins(name)
        self.table.add(
            name,
            prompt_tokens=tokens,
            prefill_deadline_s=first_due_s,
            tpot_s=request.slo.tpot_s,
            standard=request.admission is Admission.STANDARD,
            hopeful=request.hopeful,
            prefill_remaining=tokens - self.cached_tokens(request),
            remaining_output=1,
            value=request.value,
            arrival_s=request.arrival_s,
        )

    def _joins(self, name: str) -> None:
        """Note that a request is not in the step that runs now, unless the engine was idle and begins with it."""
        now_s = time.monotonic()
        if len(self.table):
            self._joined_s[name] = now_s
        else:
            self._step_began_s = now_s

    def promote(self, wire_id: str) -> None:
        """Make a resident request standard; an unknown one is ignored."""
        if wire_id in self.table:
            self.table.promote(self.table.slot(wire_id))

    def next_due_s(self, wire_id: str) -> float | None:
        """When the engine owes the next token of a request that has produced some; None before the first."""
        if wire_id not in self.table:
            return None
        slot = self.table.slot(wire_id)
        return float(self.table.next_deadline_s[slot]) if self.table.generated[slot] else None

    def remove(self, wire_id: str) -> None:
        """Forget a request; an unknown one is ignored."""
        self._joined_s.pop(wire_id, None)
        self._arriving.discard(wire_id)
        if wire_id in self.table:
            self.table.remove(wire_id)

    def apply(self, update: worker_pb2.RequestStep, at_s: float, thinking_end_index: int = -1) -> bool:
        """Take what a step changed for one request; return whether its new tokens were late for the engine.

        thinking_end_index: index in the new tokens of the marker that ends the thinking stage; -1: not among them.
        """
        wire_id = update.request_id
        table = self.table
        if update.token_ids or update.kv_recomputed:
            self._arriving.discard(wire_id)
        if wire_id not in table:
            return False
        slot = table.slot(wire_id)
        tokens = len(update.token_ids)
        late = False
        if tokens:
            due_s = table.next_deadline_s if table.generated[slot] else table.prefill_deadline_s
            late = bool(at_s > due_s[slot])
            before = thinking_end_index + 1 if thinking_end_index >= 0 else tokens
            self._produce(slot, before, at_s)
            if thinking_end_index >= 0:
                table.thinking_ended(slot)
                self._produce(slot, tokens - before, at_s)
        if update.finish_reason:
            table.remove(wire_id)
            return late
        table.prefill_remaining[slot] = update.prefill_remaining
        table.context[slot] = update.context_tokens
        table.kv_blocks[slot] = update.kv_blocks
        table.preemptions[slot] = update.preemptions
        if update.relegated:
            table.relegate(slot)
        if update.accept_rate > 0.0:
            table.accept_rate[slot], table.draft_share[slot] = update.accept_rate, update.draft_share
        return late

    def _produce(self, slot: int, tokens: int, at_s: float) -> None:
        if tokens and not self.table.generated[slot]:
            self.table.first_token(slot, at_s)
            tokens -= 1
        if tokens:
            self.table.tokens_out(slot, tokens)

    def expect_more(self, wire_id: str, remaining_output: int) -> None:
        """Correct the estimate of the output still to come."""
        if wire_id in self.table:
            self.table.remaining_output[self.table.slot(wire_id)] = max(1, remaining_output)

    def used_tokens(self) -> int:
        """Tokens of KV memory in use."""
        return max(0, self.limits.total_blocks - self.free_blocks) * self.limits.block_size

    def counts(self) -> tuple[int, int]:
        """Resident (standard, best-effort) requests."""
        standard = int(self.table.standard.sum())
        return standard, len(self.table) - standard
