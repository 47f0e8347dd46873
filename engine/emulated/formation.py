"""Turns a policy's plan into the batch of one step, within the limits and the memory of the engine."""

from __future__ import annotations

from engine.emulated.config import EmulatedConfig
from engine.emulated.live import Batch, Live
from engine.emulated.residents import Residents
from scheduling.policy import BatchPlan
from scheduling.time_model import BatchShape


class BatchFormation:
    """Gives each planned request its blocks, and leaves out what does not fit."""

    def __init__(self, config: EmulatedConfig, residents: Residents) -> None:
        """Work on these requests."""
        self._config = config
        self._residents = residents
        self._table = residents.table

    def form(self, plan: BatchPlan) -> Batch:
        """Return the batch; it is empty only when no request can be given memory."""
        batch = Batch()
        for slot in plan.relegate_slots.tolist():
            self._table.relegate(slot)
            live = self._residents.at(slot)
            batch.relegated.add(live.request_id)
            batch.touched[live.request_id] = live
        for slot in plan.preempt_slots.tolist():
            self._residents.preempt(self._residents.at(slot), batch)
        for slot, verified in zip(plan.decode_slots.tolist(), plan.spec_tokens.tolist(), strict=True):
            self._add_decode(self._residents.at(slot), int(verified), batch)
        for slot, chunk in zip(plan.prefill_slots.tolist(), plan.prefill_tokens.tolist(), strict=True):
            self._add_prefill(self._residents.at(slot), int(chunk), batch)
        if batch.requests == 0:
            self._add_first(batch)
        return batch

    def shape(self, batch: Batch) -> BatchShape:
        """Return what decides how long a step with this batch takes."""
        attention = 0.0
        for live, chunk in batch.prefills:
            context = int(self._table.context[self._table.slot(live.request_id)])
            attention += chunk * (context + chunk / 2)
        kv_tokens = sum(int(self._table.context[self._table.slot(live.request_id)]) for live, _ in batch.decodes)
        drafts = max((verified - 1 for _, verified in batch.decodes), default=0)
        return BatchShape(batch.tokens, batch.requests, kv_tokens, attention, drafts)

    def _room(self, batch: Batch) -> int:
        """Tokens that the batch can still take; 0 when it has as many requests as it may."""
        if batch.requests >= self._config.max_batch_requests:
            return 0
        return self._config.max_batch_tokens - batch.tokens

    def _add_decode(self, live: Live, verified: int, batch: Batch) -> None:
        request_id = live.request_id
        slot = self._table.slot(request_id)
        if not live.blocks or self._table.prefill_remaining[slot] > 0:
            return  # evicted for another request of this very batch
        left = live.max_tokens - live.generated
        verified = max(1, min(verified, self._config.max_spec_tokens, self._room(batch), left))
        if self._room(batch) < 1 or not self._residents.grow(live, int(self._table.context[slot]) + verified, batch):
            return
        batch.decodes.append((live, verified))
        batch.tokens += verified
        batch.touched[request_id] = live

    def _add_prefill(self, live: Live, chunk: int, batch: Batch) -> None:
        request_id = live.request_id
        slot = self._table.slot(request_id)
        room = self._room(batch)
        if room < 1 or chunk < 1 or self._table.prefill_remaining[slot] == 0:
            return
        if not live.blocks:
            self._residents.reuse_prefix(live, slot)
        chunk = min(chunk, room, int(self._table.prefill_remaining[slot]))
        context = int(self._table.context[slot])
        if not self._residents.grow(live, context + chunk, batch):
            held = (self._residents.pool.free + len(live.blocks)) * self._config.block_size
            chunk = min(chunk, held - context)
            if chunk < 1 or not self._residents.grow(live, context + chunk, batch):
                return
        batch.prefills.append((live, chunk))
        batch.tokens += chunk
        batch.touched[request_id] = live

    def _add_first(self, batch: Batch) -> None:
        """Run the oldest request, whatever the plan says: a step in which nothing runs would never end."""
        slots = self._table.slots().tolist()
        first = next((slot for slot in slots if self._table.standard[slot]), slots[0])
        live = self._residents.at(first)
        for slot in slots:
            if slot != first and self._residents.at(slot).blocks:
                self._residents.preempt(self._residents.at(slot), batch)
        if self._table.prefill_remaining[first] > 0:
            self._add_prefill(live, self._config.max_batch_tokens, batch)
        else:
            self._add_decode(live, 1, batch)
