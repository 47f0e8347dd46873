"""The requests in an emulated engine and the KV blocks that they hold."""

from __future__ import annotations

from typing import TYPE_CHECKING

from engine.emulated.config import EmulatedConfig
from engine.emulated.kv import BlockPool, block_hashes
from engine.emulated.live import Batch, Live
from engine.protocol import RequestUpdate, TokenLogprob
from scheduling.request_table import RequestTable

if TYPE_CHECKING:
    from engine.emulated.exchange import KvExchange


class Residents:
    """Request table, block pool and prefix cache; a request that waits for its KV is in `live` but not in the table."""

    def __init__(self, config: EmulatedConfig, exchange: KvExchange | None) -> None:
        """Start empty."""
        self._config = config
        self._exchange = exchange
        self.table = RequestTable()
        self.pool = BlockPool(config.kv_blocks, config.prefix_caching)
        self.live: dict[str, Live] = {}

    def enter(self, live: Live, context: int) -> None:
        """Put a request in the table, with the KV of its first `context` tokens in its blocks."""
        request = live.request
        thinking_tpot_s = request.thinking_tpot_s if live.thinking else None
        slot = self.table.add(
            request.request_id,
            prompt_tokens=request.prompt_tokens,
            prefill_deadline_s=request.first_token_due_s,
            tpot_s=request.tpot_s if thinking_tpot_s is None else thinking_tpot_s,
            answer_tpot_s=request.tpot_s,
            standard=request.standard,
            hopeful=request.hopeful,
            context=context,
            generated=live.generated,
            next_deadline_s=request.next_token_due_s,
            remaining_output=max(1, min(request.expected_output_tokens, live.max_tokens) - live.generated),
            max_remaining_output=live.max_tokens - live.generated,
            value=request.value,
            arrival_s=request.arrival_s,
            kv_blocks=len(live.blocks),
        )
        if context:
            self.name_blocks(live, int(self.table.context[slot]))

    def at(self, slot: int) -> Live:
        """Return the request in a slot of the table."""
        return self.live[self.table.request_id(slot)]

    def reuse_prefix(self, live: Live, slot: int) -> None:
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

    def grow(self, live: Live, tokens: int, batch: Batch) -> bool:
        """Give a request blocks for so many tokens, evicting others when it is standard; False when there are none."""
        slot = self.table.slot(live.request_id)
        missing = -(-tokens // self._config.block_size) - len(live.blocks)
        while missing > self.pool.free:
            victim = self._victim(slot, batch)
            if victim is None:
                return False
            self.preempt(victim, batch)
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
        standard, sequence = bool(self.table.standard[slot]), int(self.table.sequence[slot])
        for other in reversed(self.table.slots().tolist()):
            live = self.at(other)
            if other == slot or not live.blocks or batch.holds(live) or self.table.standard[other]:
                continue
            if standard or int(self.table.sequence[other]) > sequence:
                return live
        for other in reversed(self.table.slots().tolist()):
            live = self.at(other)
            if other == slot or not live.blocks or batch.holds(live) or not standard:
                continue
            if int(self.table.sequence[other]) > sequence:
                return live
        return None

    def preempt(self, live: Live, batch: Batch) -> None:
        """Drop a request's KV; its tokens are kept."""
        if self._exchange is not None and live.request.kv_transfer is not None and live.request.kv_transfer.producer:
            self._exchange.interrupt(live, "the request was preempted on the prefill worker")
        self.pool.release(live.blocks)
        live.blocks, live.named_blocks = [], 0
        self.table.preempted(self.table.slot(live.request_id))
        batch.touched[live.request_id] = live

    def name_blocks(self, live: Live, context: int) -> None:
        """Make the full blocks of a request known to the prefix cache."""
        size = self._config.block_size
        full = context // size
        if not self._config.prefix_caching or full <= live.named_blocks:
            return
        if full > len(live.hashes):
            live.hashes = block_hashes(live.tokens[: full * size], size, live.hashes)
        for index in range(live.named_blocks, full):
            self.pool.name(live.blocks[index], live.hashes[index])
        if self._exchange is not None:
            self._exchange.write(live, live.named_blocks, full * size)
        live.named_blocks = full

    def state(
        self,
        live: Live,
        tokens: tuple[int, ...] = (),
        text: str = "",
        logprobs: tuple[tuple[TokenLogprob, ...], ...] = (),
        relegated: bool = False,
        finish_reason: str = "",
        error: str = "",
    ) -> RequestUpdate:
        """Report a request as it is now, with what the step gave it; drafts are told once."""
        slot = self.table.slot(live.request_id) if live.request_id in self.table else None
        drafts, accepted_drafts = live.drafts, live.accepted_drafts
        live.drafts = live.accepted_drafts = 0
        return RequestUpdate(
            request_id=live.request_id,
            token_ids=tokens,
            text=text,
            logprobs=logprobs,
            finish_reason=finish_reason,
            error=error,
            prefill_remaining=len(live.tokens) if slot is None else int(self.table.prefill_remaining[slot]),
            context_tokens=0 if slot is None else int(self.table.context[slot]),
            kv_blocks=len(live.blocks),
            preemptions=0 if slot is None else int(self.table.preemptions[slot]),
            cached_tokens=live.cached_tokens,
            accepted_draft_tokens=accepted_drafts,
            draft_tokens=drafts,
            accept_rate=0.0 if slot is None else float(self.table.accept_rate[slot]),
            draft_share=0.0 if slot is None else float(self.table.draft_share[slot]),
            relegated=relegated,
            kv_recomputed=live.kv_recomputed,
        )
