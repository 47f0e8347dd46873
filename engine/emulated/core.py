"""The state of an emulated engine and what one step does to it; no clock, no waiting.

A step has two halves: begin() plans the batch and gives it KV blocks, finish() hands out its tokens.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, field

from engine.emulated.config import EmulatedConfig
from engine.emulated.kv import BlockPool, block_hashes
from engine.emulated.output import OutputScript, StopText
from engine.protocol import EngineRequest, RequestRejected, RequestUpdate, TokenLogprob
from scheduling.policy import BatchPolicy
from scheduling.request_table import RequestTable
from scheduling.time_model import BatchShape, TimeModel


@dataclass(slots=True)
class Live:
    """A request in the engine.

    tokens: prompt and output so far. hashes: one per full block of tokens, as far as they were needed.
    """

    request: EngineRequest
    script: OutputScript
    text: StopText
    tokens: list[int]
    max_tokens: int
    thinking: bool
    blocks: list[int] = field(default_factory=list)
    hashes: list[int] = field(default_factory=list)
    cached_tokens: int = 0
    accepted_drafts: int = 0
    drafts: int = 0
    named_blocks: int = 0

    @property
    def generated(self) -> int:
        """Output tokens so far, from the original prompt on."""
        return len(self.tokens) - self.request.prompt_tokens


@dataclass(slots=True)
class Batch:
    """One step under way: requests with the tokens that each computes."""

    decodes: list[tuple[Live, int]]
    prefills: list[tuple[Live, int]]
    duration_s: float
    predicted_s: float
    tokens: int
    touched: dict[str, Live]
    relegated: set[str]

    @property
    def requests(self) -> int:
        """Requests in the batch."""
        return len(self.decodes) + len(self.prefills)


class EmulatedCore:
    """Request table, block pool and batch formation of one emulated engine."""

    def __init__(self, config: EmulatedConfig, policy: BatchPolicy) -> None:
        """Start empty."""
        self._config = config
        self._limits = config.limits
        self._true_model = config.true_time_model
        self._noise = random.Random(config.seed)
        self._accept_rate = config.accept_rate if config.max_spec_tokens > 1 else 0.0
        self.policy = policy
        self.planning_model: TimeModel = self._true_model
        self.table = RequestTable()
        self.pool = BlockPool(config.kv_blocks, config.prefix_caching)
        self.live: dict[str, Live] = {}
        self._cancelled: set[str] = set()

    def submit(self, request: EngineRequest) -> None:
        """Take a request in; RequestRejected when it can never run."""
        max_tokens = self._check(request)
        output = request.token_ids[request.prompt_tokens :]
        script = OutputScript(request, self._config)
        before = "".join(script.word(token, position) for position, token in enumerate(output))
        text = StopText(request.sampling.stop, before[request.text_chars :])
        thinks = request.thinking_end_token_id is not None and not request.thinking_done
        thinks = thinks and request.thinking_end_token_id not in output
        live = Live(request, script, text, list(request.token_ids), max_tokens, thinks)
        thinking_tpot_s = request.thinking_tpot_s if thinks else None
        self.table.add(
            request.request_id,
            prompt_tokens=request.prompt_tokens,
            prefill_deadline_s=request.first_token_due_s,
            tpot_s=request.tpot_s if thinking_tpot_s is None else thinking_tpot_s,
            answer_tpot_s=request.tpot_s,
            standard=request.standard,
            generated=len(output),
            next_deadline_s=request.next_token_due_s,
            remaining_output=max(1, min(request.expected_output_tokens, max_tokens) - len(output)),
            max_remaining_output=max_tokens - len(output),
            value=request.value,
            arrival_s=request.arrival_s,
            accept_rate=self._accept_rate,
        )
        self.live[request.request_id] = live

    def promote(self, request_id: str, first_token_due_s: float, next_token_due_s: float | None) -> None:
        """Make a request standard; unknown ids are ignored."""
        if request_id not in self.table:
            return
        slot = self.table.slot(request_id)
        self.table.standard[slot] = True
        self.table.prefill_deadline_s[slot] = first_token_due_s
        if next_token_due_s is not None:
            self.table.next_deadline_s[slot] = next_token_due_s

    def relegate(self, request_id: str) -> None:
        """Make a request best effort; unknown ids are ignored."""
        if request_id in self.table:
            self.table.standard[self.table.slot(request_id)] = False

    def cancel(self, request_id: str) -> None:
        """Mark a request, running or waiting, for removal at the end of the step; unknown ids are ignored."""
        if request_id in self.live:
            self._cancelled.add(request_id)

    def drop_cancelled(self) -> list[RequestUpdate]:
        """Remove the requests that were cancelled, with their blocks."""
        gone, self._cancelled = self._cancelled, set()
        return [self._end(self.live[request_id], "cancelled") for request_id in sorted(gone) if request_id in self.live]

    def begin(self, now_s: float) -> Batch | None:
        """Plan the next step and give its requests their blocks; None when there is nothing to do."""
        if not self.live:
            return None
        plan = self.policy.plan(now_s, self.table, self.pool.free, self.planning_model, self._limits)
        batch = Batch([], [], 0.0, float(plan.predicted_s), 0, {}, set())
        for slot in plan.relegate_slots.tolist():
            self.table.standard[slot] = False
            live = self._at(slot)
            batch.relegated.add(live.request.request_id)
            batch.touched[live.request.request_id] = live
        for slot in plan.preempt_slots.tolist():
            self._preempt(self._at(slot), batch)
        for slot, verified in zip(plan.decode_slots.tolist(), plan.spec_tokens.tolist(), strict=True):
            self._add_decode(self._at(slot), int(verified), batch)
        for slot, chunk in zip(plan.prefill_slots.tolist(), plan.prefill_tokens.tolist(), strict=True):
            self._add_prefill(self._at(slot), int(chunk), batch)
        if batch.requests == 0:
            self._add_first(batch)
        shape = self._shape(batch)
        noise = max(0.1, self._noise.gauss(1.0, self._config.time_noise)) if self._config.time_noise else 1.0
        batch.duration_s = self._true_model.duration_s(shape) * noise
        return batch

    def finish(self, batch: Batch, ended_s: float) -> list[RequestUpdate]:
        """Hand out the tokens of a step; cancelled requests must be dropped before."""
        updates: dict[str, RequestUpdate] = {}
        for live, chunk in batch.prefills:
            request_id = live.request.request_id
            if request_id not in self.live:
                continue
            slot = self.table.slot(request_id)
            self.table.prefilled(slot, chunk)
            self._name_blocks(live, int(self.table.context[slot]))
            count = 1 if self.table.prefill_remaining[slot] == 0 else 0
            updates[request_id] = self._emit(live, slot, count, ended_s, batch)
        for live, verified in batch.decodes:
            request_id = live.request.request_id
            if request_id not in self.live:
                continue
            slot = self.table.slot(request_id)
            drafted = verified - 1
            right = live.script.accepted(live.generated, drafted, self._config.accept_rate)
            if drafted:
                live.drafts += drafted
                live.accepted_drafts += right
                self._learn_acceptance(right, drafted)
                self.table.accept_rate[slot] = self._accept_rate
            updates[request_id] = self._emit(live, slot, right + 1, ended_s, batch)
        for request_id, live in batch.touched.items():
            if request_id in self.live and request_id not in updates:
                updates[request_id] = self._state(live, relegated=request_id in batch.relegated)
        return list(updates.values())

    def _check(self, request: EngineRequest) -> int:
        """Return the bound on output tokens of a request that can run; RequestRejected for any other."""
        config, sampling, length = self._config, request.sampling, len(request.token_ids)
        if request.request_id in self.live:
            raise RequestRejected("ALREADY_EXISTS", f"request {request.request_id!r} is running on this engine already")
        if len(self.live) >= config.queue_limit:
            raise RequestRejected("RESOURCE_EXHAUSTED", f"the engine holds {config.queue_limit} requests; try later")
        if not 1 <= request.prompt_tokens <= length:
            raise RequestRejected("INVALID_ARGUMENT", "the prompt needs at least one token, within the tokens given")
        if min(request.token_ids) < 0 or max(request.token_ids) >= config.vocab_size:
            raise RequestRejected("INVALID_ARGUMENT", f"token ids must lie in 0..{config.vocab_size - 1}")
        if length >= config.max_model_len:
            raise RequestRejected(
                "INVALID_ARGUMENT",
                f"{length} tokens leave no room for output in the window of {config.max_model_len}; shorten the prompt",
            )
        if sampling.json_schema or sampling.json_object:
            raise RequestRejected("UNIMPLEMENTED", "the emulated engine has no structured output")
        if request.kv_transfer is not None:
            raise RequestRejected("UNIMPLEMENTED", "the emulated engine has no KV exchange")
        if request.tpot_s <= 0 or (request.thinking_tpot_s is not None and request.thinking_tpot_s <= 0):
            raise RequestRejected("INVALID_ARGUMENT", "the time per output token must be positive")
        capacity = config.kv_blocks * config.block_size
        if length >= capacity:
            raise RequestRejected(
                "INVALID_ARGUMENT", f"{length} tokens and their output do not fit the KV cache of {capacity} tokens"
            )
        room = min(config.max_model_len, capacity) - request.prompt_tokens
        wanted = room if sampling.max_tokens is None else min(sampling.max_tokens, room)
        if wanted <= length - request.prompt_tokens:
            raise RequestRejected("INVALID_ARGUMENT", "max_tokens leaves nothing to produce")
        return wanted

    def _at(self, slot: int) -> Live:
        return self.live[self.table.request_id(slot)]

    def _room(self, batch: Batch) -> int:
        """Tokens that the batch can still take; 0 when it has as many requests as it may."""
        if batch.requests >= self._config.max_batch_requests:
            return 0
        return self._config.max_batch_tokens - batch.tokens

    def _add_decode(self, live: Live, verified: int, batch: Batch) -> None:
        request_id = live.request.request_id
        slot = self.table.slot(request_id)
        if not live.blocks or self.table.prefill_remaining[slot] > 0:
            return  # evicted for another request of this very batch
        left = live.max_tokens - live.generated
        verified = max(1, min(verified, self._config.max_spec_tokens, self._room(batch), left))
        if self._room(batch) < 1 or not self._grow(live, int(self.table.context[slot]) + verified, batch):
            return
        batch.decodes.append((live, verified))
        batch.tokens += verified
        batch.touched[request_id] = live

    def _add_prefill(self, live: Live, chunk: int, batch: Batch) -> None:
        request_id = live.request.request_id
        slot = self.table.slot(request_id)
        room = self._room(batch)
        if room < 1 or chunk < 1 or self.table.prefill_remaining[slot] == 0:
            return
        if not live.blocks:
            self._reuse_prefix(live, slot)
        chunk = min(chunk, room, int(self.table.prefill_remaining[slot]))
        context = int(self.table.context[slot])
        if not self._grow(live, context + chunk, batch):
            held = (self.pool.free + len(live.blocks)) * self._config.block_size
            chunk = min(chunk, held - context)
            if chunk < 1 or not self._grow(live, context + chunk, batch):
                return
        batch.prefills.append((live, chunk))
        batch.tokens += chunk
        batch.touched[request_id] = live

    def _add_first(self, batch: Batch) -> None:
        """Run the oldest request, whatever the plan says: a step in which nothing runs would never end."""
        slots = self.table.slots().tolist()
        first = next((slot for slot in slots if self.table.standard[slot]), slots[0])
        live = self._at(first)
        for slot in slots:
            if slot != first and self._at(slot).blocks:
                self._preempt(self._at(slot), batch)
        if self.table.prefill_remaining[first] > 0:
            self._add_prefill(live, self._config.max_batch_tokens, batch)
        else:
            self._add_decode(live, 1, batch)

    def _reuse_prefix(self, live: Live, slot: int) -> None:
        """Begin a prefill with the blocks that the cache has; at least one token is left to compute."""
        bound = (len(live.tokens) - 1) // self._config.block_size
        live.hashes = block_hashes(live.tokens, self._config.block_size, live.hashes)
        blocks = self.pool.match(live.hashes[:bound])
        if not blocks:
            return
        self.pool.hold(blocks)
        live.blocks = blocks
        cached = len(blocks) * self._config.block_size
        if live.cached_tokens == 0:
            live.cached_tokens = min(cached, live.request.prompt_tokens)
        self.table.prefilled(slot, cached)
        self.table.kv_blocks[slot] = len(blocks)

    def _grow(self, live: Live, tokens: int, batch: Batch) -> bool:
        """Give a request blocks for so many tokens, evicting others when it is standard; False when there are none."""
        slot = self.table.slot(live.request.request_id)
        missing = -(-tokens // self._config.block_size) - len(live.blocks)
        while missing > self.pool.free:
            victim = self._victim(slot, batch)
            if victim is None:
                return False
            self._preempt(victim, batch)
        if missing > 0:
            blocks = self.pool.take(missing)
            assert blocks is not None
            live.blocks += blocks
            self.table.kv_blocks[slot] = len(live.blocks)
        return True

    def _victim(self, slot: int, batch: Batch) -> Live | None:
        """Return who gives way to the request in a slot: the last best-effort request outside the batch, or nobody.

        A standard request gives way only to an older one of its kind.
        """
        busy = {live.request.request_id for live, _ in (*batch.decodes, *batch.prefills)}
        standard, sequence = bool(self.table.standard[slot]), int(self.table.sequence[slot])
        for other in reversed(self.table.slots().tolist()):
            live = self._at(other)
            if other == slot or not live.blocks or live.request.request_id in busy or self.table.standard[other]:
                continue
            if standard or int(self.table.sequence[other]) > sequence:
                return live
        for other in reversed(self.table.slots().tolist()):
            live = self._at(other)
            if other == slot or not live.blocks or live.request.request_id in busy or not standard:
                continue
            if int(self.table.sequence[other]) > sequence:
                return live
        return None

    def _preempt(self, live: Live, batch: Batch) -> None:
        """Drop a request's KV; its tokens are kept."""
        self.pool.release(live.blocks)
        live.blocks, live.named_blocks = [], 0
        self.table.preempted(self.table.slot(live.request.request_id))
        batch.touched[live.request.request_id] = live

    def _shape(self, batch: Batch) -> BatchShape:
        attention = 0.0
        for live, chunk in batch.prefills:
            context = int(self.table.context[self.table.slot(live.request.request_id)])
            attention += chunk * (context + chunk / 2)
        kv_tokens = sum(int(self.table.context[self.table.slot(live.request.request_id)]) for live, _ in batch.decodes)
        drafts = max((verified - 1 for _, verified in batch.decodes), default=0)
        return BatchShape(batch.tokens, batch.requests, kv_tokens, attention, drafts)

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
            self._name_blocks(live, int(table.context[slot]))
        if reason:
            text += live.text.rest()
            return self._end(live, reason, tuple(tokens), text, tuple(logprobs))
        relegated = request.request_id in batch.relegated
        return self._state(live, tuple(tokens), text, tuple(logprobs), relegated)

    def _name_blocks(self, live: Live, context: int) -> None:
        """Make the full blocks of a request known to the prefix cache."""
        size = self._config.block_size
        full = context // size
        if not self._config.prefix_caching or full <= live.named_blocks:
            return
        if full > len(live.hashes):
            live.hashes = block_hashes(live.tokens[: full * size], size, live.hashes)
        for index in range(live.named_blocks, full):
            self.pool.name(live.blocks[index], live.hashes[index])
        live.named_blocks = full

    def _learn_acceptance(self, right: int, drafted: int) -> None:
        # A wrong draft ends the run, so tokens after it were never tried.
        tried = min(right + 1, drafted)
        for index in range(tried):
            self._accept_rate += 0.02 * ((1.0 if index < right else 0.0) - self._accept_rate)

    def _state(
        self,
        live: Live,
        tokens: tuple[int, ...] = (),
        text: str = "",
        logprobs: tuple[tuple[TokenLogprob, ...], ...] = (),
        relegated: bool = False,
        finish_reason: str = "",
        error: str = "",
    ) -> RequestUpdate:
        slot = self.table.slot(live.request.request_id)
        return RequestUpdate(
            request_id=live.request.request_id,
            token_ids=tokens,
            text=text,
            logprobs=logprobs,
            finish_reason=finish_reason,
            error=error,
            prefill_remaining=int(self.table.prefill_remaining[slot]),
            context_tokens=int(self.table.context[slot]),
            kv_blocks=len(live.blocks),
            preemptions=int(self.table.preemptions[slot]),
            cached_tokens=live.cached_tokens,
            accepted_draft_tokens=live.accepted_drafts,
            draft_tokens=live.drafts,
            relegated=relegated,
        )

    def _end(
        self,
        live: Live,
        reason: str,
        tokens: tuple[int, ...] = (),
        text: str = "",
        logprobs: tuple[tuple[TokenLogprob, ...], ...] = (),
        error: str = "",
    ) -> RequestUpdate:
        """Remove a request and everything it holds."""
        self.pool.release(live.blocks)
        live.blocks = []
        update = self._state(live, tokens, text, logprobs, False, reason, error)
        self.table.remove(live.request.request_id)
        del self.live[live.request.request_id]
        return update
