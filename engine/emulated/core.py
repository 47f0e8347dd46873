"""The state of an emulated engine and what one step does to it; no clock, no waiting.

A step has two halves: begin() plans the batch and gives it KV blocks, finish() hands out its tokens.
"""

from __future__ import annotations

import random
from dataclasses import replace
from typing import TYPE_CHECKING

from engine.emulated.checks import output_bound
from engine.emulated.config import EmulatedConfig
from engine.emulated.formation import BatchFormation
from engine.emulated.kv import block_hashes
from engine.emulated.live import Batch, Live
from engine.emulated.output import OutputScript, StopText
from engine.emulated.residents import Residents
from engine.kv.config import KvExchangeError
from engine.protocol import EngineRequest, RequestRejected, RequestUpdate, TokenLogprob
from scheduling.policy import BatchPolicy
from scheduling.speculation import AcceptanceEstimator
from scheduling.time_model import TimeModel

if TYPE_CHECKING:
    from engine.emulated.exchange import KvExchange


class EmulatedCore:
    """One emulated engine: what comes in, what a step does, what goes out."""

    def __init__(self, config: EmulatedConfig, policy: BatchPolicy, exchange: KvExchange | None = None) -> None:
        """Start empty; exchange: how KV comes and goes."""
        self._config = config
        self._limits = config.limits
        self._true_model = config.true_time_model
        self._noise = random.Random(config.seed)
        self._acceptance = AcceptanceEstimator(config.accept_rate) if config.max_spec_tokens > 1 else None
        self.policy = policy
        self.planning_model: TimeModel = self._true_model
        self._residents = Residents(config, exchange)
        self._formation = BatchFormation(config, self._residents)
        self.table, self.pool, self.live = self._residents.table, self._residents.pool, self._residents.live
        self._cancelled: set[str] = set()
        self._exchange = exchange
        self._awaiting: dict[str, Live] = {}

    @property
    def waits_for_kv(self) -> bool:
        """Something may change without a step: KV comes or goes."""
        return bool(self._awaiting) or (self._exchange is not None and self._exchange.busy)

    def submit(self, request: EngineRequest) -> None:
        """Take a request in; RequestRejected when it can never run."""
        if request.request_id in self.live:
            raise RequestRejected("ALREADY_EXISTS", f"request {request.request_id!r} is running on this engine already")
        limit = self._config.queue_limit
        if len(self.live) >= limit:
            raise RequestRejected("RESOURCE_EXHAUSTED", f"the engine holds {limit} requests; try later")
        max_tokens = output_bound(request, self._config)
        output = request.token_ids[request.prompt_tokens :]
        script = OutputScript(request, self._config)
        before = "".join(script.word(token, position) for position, token in enumerate(output))
        text = StopText(request.sampling.stop, before[request.text_chars :])
        thinks = request.thinking_end_token_id is not None and not request.thinking_done
        thinks = thinks and request.thinking_end_token_id not in output
        live = Live(request, script, text, list(request.token_ids), max_tokens, thinks)
        if request.kv_transfer is None:
            self._enter(live, 0)
        elif request.kv_transfer.producer:
            assert self._exchange is not None
            try:
                self._exchange.offer(live)
            except KvExchangeError as error:
                raise RequestRejected("INVALID_ARGUMENT", str(error)) from error
            self._enter(live, 0)
        else:
            self._awaiting[request.request_id] = live
        self.live[request.request_id] = live

    def promote(self, request_id: str, first_token_due_s: float, next_token_due_s: float | None) -> None:
        """Make a request standard; unknown ids are ignored."""
        if request_id in self._awaiting:
            live = self._awaiting[request_id]
            live.request = replace(
                live.request, standard=True, first_token_due_s=first_token_due_s, next_token_due_s=next_token_due_s
            )
        if request_id not in self.table:
            return
        slot = self.table.slot(request_id)
        self.table.promote(slot)
        self.table.prefill_deadline_s[slot] = first_token_due_s
        if next_token_due_s is not None:
            self.table.next_deadline_s[slot] = next_token_due_s

    def relegate(self, request_id: str) -> None:
        """Make a request best effort; unknown ids are ignored."""
        if request_id in self._awaiting:
            live = self._awaiting[request_id]
            live.request = replace(live.request, standard=False, hopeful=False)
        if request_id in self.table:
            self.table.relegate(self.table.slot(request_id))

    def cancel(self, request_id: str) -> None:
        """Mark a request, running or waiting, for removal at the end of the step; unknown ids are ignored."""
        if request_id in self.live:
            self._cancelled.add(request_id)

    def drop_cancelled(self) -> list[RequestUpdate]:
        """Remove the requests that were cancelled, with their blocks."""
        gone, self._cancelled = self._cancelled, set()
        return [self._end(self.live[request_id], "cancelled") for request_id in sorted(gone) if request_id in self.live]

    def exchange_kv(self) -> None:
        """Take note of KV that has come or gone; only between steps."""
        if self._exchange is None:
            return
        settled = self._exchange.poll()
        for blocks in settled.free:
            self.pool.release(blocks)
        for live in settled.arrived:
            # The last token is computed here once more, for the first output token comes from it.
            self._enter(live, len(live.tokens) - 1)
        for live in settled.failed:
            self._recompute(live)
        for live in list(self._awaiting.values()):
            if not live.blocks:
                self._receive(live)

    def begin(self, now_s: float) -> Batch | None:
        """Plan the next step and give its requests their blocks; None when there is nothing to do."""
        if len(self.table) == 0:
            return None
        plan = self.policy.plan(now_s, self.table, self.pool.free, self.planning_model, self._limits)
        batch = self._formation.form(plan)
        if batch.requests == 0:
            if not self.waits_for_kv:
                raise RuntimeError(f"{len(self.table)} requests and no way to run one of them")
            return None  # memory comes back when KV has left
        shape = self._formation.shape(batch)
        noise = max(0.1, self._noise.gauss(1.0, self._config.time_noise)) if self._config.time_noise else 1.0
        batch.shape = shape
        batch.predicted_s = self.planning_model.duration_s(shape) / self.planning_model.margin
        batch.duration_s = self._true_model.duration_s(shape) * noise
        return batch

    def finish(self, batch: Batch, ended_s: float) -> list[RequestUpdate]:
        """Hand out the tokens of a step; cancelled requests must be dropped before."""
        updates: dict[str, RequestUpdate] = {}
        for live, chunk in batch.prefills:
            request_id = live.request_id
            if request_id not in self.live:
                continue
            slot = self.table.slot(request_id)
            self.table.prefilled(slot, chunk)
            context = int(self.table.context[slot])
            self._residents.name_blocks(live, context)
            if self._exchange is not None:
                self._exchange.write(live, (context - chunk) // self._config.block_size, context)
                if live.request.kv_transfer is not None and live.request.kv_transfer.producer:
                    self._exchange.computed(live, context)
            count = 1 if self.table.prefill_remaining[slot] == 0 else 0
            updates[request_id] = self._emit(live, slot, count, ended_s, batch)
        for live, verified in batch.decodes:
            request_id = live.request_id
            if request_id not in self.live:
                continue
            slot = self.table.slot(request_id)
            drafted = verified - 1
            right = live.script.accepted(live.generated, drafted, self._config.accept_rate)
            if drafted:
                live.drafts, live.accepted_drafts = drafted, right
                self._know_acceptance(live, slot, right, drafted)
            updates[request_id] = self._emit(live, slot, right + 1, ended_s, batch)
        for request_id, live in batch.touched.items():
            if request_id in self.live and request_id not in updates:
                updates[request_id] = self._residents.state(live, relegated=request_id in batch.relegated)
        return list(updates.values())

    def _enter(self, live: Live, context: int) -> None:
        self._awaiting.pop(live.request_id, None)
        self._residents.enter(live, context)
        self._know_acceptance(live, self.table.slot(live.request_id))

    def _receive(self, live: Live) -> None:
        """Make room for KV that another engine sends, or compute it when nearly all of it is here; else wait on."""
        assert self._exchange is not None
        size = self._config.block_size
        live.hashes = block_hashes(live.tokens, size, live.hashes)
        bound = (len(live.tokens) - 1) // size
        blocks = self.pool.match(live.hashes[:bound])
        self.pool.hold(blocks)
        live.cached_tokens = min(len(blocks) * size, live.request.prompt_tokens)
        if blocks and len(blocks) == bound:
            self._exchange.refuse(live, "the decode worker holds this prompt already")
            live.blocks = blocks
            self._enter(live, len(blocks) * size)
            return
        missing = -(-len(live.tokens) // size) - len(blocks)
        for slot in reversed(self.table.slots().tolist()) if live.request.standard else ():
            if missing <= self.pool.free:
                break
            if self._residents.at(slot).blocks and not self.table.standard[slot]:
                self._residents.preempt(self._residents.at(slot), Batch())
        taken = self.pool.take(missing)
        if taken is None:
            self.pool.release(blocks)
            return
        live.blocks = blocks + taken
        if not self._exchange.expect(live, len(blocks)):
            self._recompute(live)

    def _recompute(self, live: Live) -> None:
        """Go on without KV that did not come, from what the prefix cache had."""
        cached = live.cached_tokens // self._config.block_size
        self.pool.release(live.blocks[cached:])
        live.blocks = live.blocks[:cached]
        live.kv_recomputed = True
        self._enter(live, cached * self._config.block_size)

    def _emit(self, live: Live, slot: int, count: int, ended_s: float, batch: Batch) -> RequestUpdate:
        """Produce up to `count` tokens and report the request."""
        table, request = self.table, live.request
        tokens: list[int] = []
        logprobs: list[tuple[TokenLogprob, ...]] = []
        text, reason = "", ""
        while len(tokens) < count and not reason:
            position = live.generated
            token = live.script.token(position)
            tokens.append(token)
            live.tokens.append(token)
            if request.sampling.logprobs is not None:
                logprobs.append(live.script.logprobs(position, request.sampling.logprobs))
            past_minimum = live.generated > request.sampling.min_tokens
            piece, stopped = live.text.add(live.script.word(token, position), past_minimum)
            text += piece
            stopped = stopped or (token in request.sampling.stop_token_ids and past_minimum)
            if stopped or live.script.is_eos(token):
                reason = "stop"
            elif live.generated >= live.max_tokens:
                reason = "length"
            if position == 0:
                table.first_token(slot, ended_s)
            else:
                table.tokens_out(slot, 1)
            if live.thinking and token == request.thinking_end_token_id:
                live.thinking = False
                table.thinking_ended(slot)
        if tokens:
            self._residents.name_blocks(live, int(table.context[slot]))
        if reason:
            text += live.text.rest()
            return self._end(live, reason, tuple(tokens), text, tuple(logprobs))
        relegated = request.request_id in batch.relegated
        return self._residents.state(live, tuple(tokens), text, tuple(logprobs), relegated)

    def _know_acceptance(self, live: Live, slot: int, right: int = 0, drafted: int = 0) -> None:
        """Learn from drafts that were verified; the table gets what is known for the request's class and tier."""
        if self._acceptance is not None:
            tier = live.request.slo_class, float(self.table.tpot_s[slot])
            self._acceptance.observe(*tier, drafted, right)
            self.table.accept_rate[slot] = self._acceptance.rate(*tier)

    def _end(
        self,
        live: Live,
        reason: str,
        tokens: tuple[int, ...] = (),
        text: str = "",
        logprobs: tuple[tuple[TokenLogprob, ...], ...] = (),
        error: str = "",
    ) -> RequestUpdate:
        """Remove a request and everything it holds, but for blocks that are being sent or received."""
        moving = False
        if self._exchange is not None and live.request.kv_transfer is not None:
            if live.request.kv_transfer.producer:
                moving = self._exchange.let_leave(live)
            elif live.request_id in self._awaiting:
                moving = self._exchange.refuse(live, "the request was cancelled on the decode worker")
        if not moving:
            self.pool.release(live.blocks)
        live.blocks = []
        update = self._residents.state(live, tokens, text, logprobs, False, reason, error)
        if live.request_id in self.table:
            self.table.remove(live.request_id)
        self._awaiting.pop(live.request_id, None)
        del self.live[live.request_id]
        return update
