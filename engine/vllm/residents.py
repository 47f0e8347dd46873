"""The requests of one vLLM scheduler, mirrored into the planner's request table."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import msgspec
import numpy as np

from engine.vllm.messages import REQUEST_ARG, DecodeRecords, RequestFacts, RequestRecord
from scheduling.kernels.decoded import token_each
from scheduling.request_table import CONTEXT, KV_BLOCKS, PREEMPTIONS, PREFILL_REMAINING, RequestTable
from scheduling.speculation import AcceptanceEstimator


@dataclass(slots=True)
class Resident:
    """One request: vLLM's object, our facts, and what the current step did to it.

    decoding: its last step gave a token, so one more token needs one more step. The fields below it are reset when
    the record of a step is made.
    """

    request: Any
    facts: RequestFacts
    slot: int
    decoding: bool = False
    thinking: bool = False
    produced: int = 0
    cached_tokens: int = 0
    relegated: bool = False
    recomputed: bool = False
    changed: bool = False

    @property
    def steady(self) -> bool:
        """Whether one more token is all that can be new: not its first, nor one that may end its thinking."""
        return self.decoding and not (self.thinking or self.changed or self.recomputed)


@dataclass(frozen=True, slots=True)
class Change:
    """What a step did to one request; see messages.RequestRecord. kv_blocks: held after it."""

    resident: Resident
    kv_blocks: int
    tokens: list[int] = field(default_factory=list)
    planned: int = 0
    scheduled: int = 0
    drafted: int = 0
    accepted: int = 0
    gone: bool = False


class Residents:
    """Keeps the table true to vLLM's requests."""

    def __init__(self, capacity: int, speculates: bool) -> None:
        """speculates: whether the engine has a speculator; without one no acceptance is estimated."""
        self.table = RequestTable(capacity)
        self.by_vllm_id: dict[str, Resident] = {}
        self.by_slot: dict[int, Resident] = {}
        self._acceptance = AcceptanceEstimator() if speculates else None

    def find(self, request_id: str) -> Resident | None:
        """Resident by our own id."""
        return self.by_slot[self.table.slot(request_id)] if request_id in self.table else None

    def admit(self, request: Any) -> Resident:
        """Add a request of vLLM's to the table."""
        facts = request_facts(request)
        thinks = facts.thinking_tpot_s is not None and not facts.thinking_done
        prompt = request.num_prompt_tokens - facts.prior_tokens
        slot = self.table.add(
            facts.request_id,
            prompt_tokens=prompt,
            generated=facts.prior_tokens,
            prefill_deadline_s=facts.first_token_due_s,
            next_deadline_s=facts.next_token_due_s,
            tpot_s=facts.thinking_tpot_s if thinks and facts.thinking_tpot_s is not None else facts.tpot_s,
            answer_tpot_s=facts.tpot_s,
            standard=facts.standard,
            hopeful=facts.hopeful,
            remaining_output=max(facts.expected_output_tokens - facts.prior_tokens, 1),
            max_remaining_output=request.max_tokens,
            value=facts.value,
            arrival_s=facts.arrival_s,
        )
        resident = Resident(request, facts, slot, thinking=thinks)
        self.by_vllm_id[request.request_id] = resident
        self.by_slot[slot] = resident
        return resident

    def remove(self, vllm_id: str) -> Resident | None:
        """Forget a request that ended."""
        resident = self.by_vllm_id.pop(vllm_id, None)
        if resident is not None:
            del self.by_slot[resident.slot]
            self.table.remove(resident.facts.request_id)
        return resident

    def preempted(self, vllm_id: str) -> None:
        """Account for dropped KV."""
        if (resident := self.by_vllm_id.get(vllm_id)) is not None:
            self.table.preempted(resident.slot)
            resident.decoding = False
            resident.cached_tokens = 0
            resident.changed = True

    def sync(self, resident: Resident) -> None:
        """Take the computed tokens of a request that does not decode from vLLM's."""
        table, slot, request = self.table, resident.slot, resident.request
        table.prefill_remaining[slot] = max(request.num_tokens - request.num_computed_tokens, 0)
        table.context[slot] = request.num_computed_tokens

    def one_token_each(
        self, residents: Sequence[Resident], tokens: list[int], kv_blocks: list[int], planned_tokens: int
    ) -> DecodeRecords | None:
        """Account for one more token of each of these and say so; see messages.DecodeRecords.

        None of the tokens is its request's first, or one that may end its thinking; nothing else has changed.
        kv_blocks: held after the step.
        """
        if not residents:
            return None
        slots, request_ids, produced, cached_tokens = [], [], [], []
        for resident in residents:
            resident.produced += 1
            slots.append(resident.slot)
            request_ids.append(resident.facts.request_id)
            produced.append(resident.produced)
            cached_tokens.append(resident.cached_tokens)
        table, places = self.table, np.array(slots)
        contexts = token_each(table.ints, table.floats, places, np.array(kv_blocks))
        return DecodeRecords(
            request_ids=request_ids,
            tokens=tokens,
            produced=produced,
            context=contexts.tolist(),
            kv_blocks=kv_blocks,
            preemptions=table.preemptions[places].tolist(),
            cached_tokens=cached_tokens,
            planned_tokens=planned_tokens,
        )

    def tokens(self, resident: Resident, tokens: list[int], at_s: float) -> None:
        """Account for new output tokens, and for the end of thinking among them."""
        marker = resident.facts.thinking_end_token_id
        if resident.thinking and marker is not None and marker in tokens:
            split = tokens.index(marker) + 1
            self._advance(resident, split, at_s)
            self.table.thinking_ended(resident.slot)
            resident.thinking = False
            self._advance(resident, len(tokens) - split, at_s)
        else:
            self._advance(resident, len(tokens), at_s)

    def _advance(self, resident: Resident, count: int, at_s: float) -> None:
        if count and self.table.generated[resident.slot] == 0:
            self.table.first_token(resident.slot, at_s)
            resident.produced += 1
            resident.decoding = True
            count -= 1
        if count:
            self.table.tokens_out(resident.slot, count)
            resident.produced += count
            resident.decoding = True

    def drafts_at_hand(self) -> None:
        """Before a plan: what is known of speculation, and who has drafts now."""
        if self._acceptance is None:
            return
        slots, residents = list(self.by_slot), list(self.by_slot.values())
        rates, shares = self._speculation(residents)
        self.table.accept_rate[slots], self.table.draft_share[slots] = rates, shares
        self.table.has_drafts[slots] = [bool(resident.request.spec_token_ids) for resident in residents]

    def verifies(self, resident: Resident, verified: int) -> None:
        """Account for a decode that is about to verify so many of the drafts that it has."""
        if self._acceptance is not None:
            key, there = self._tier(resident), bool(resident.request.spec_token_ids)
            self._acceptance.offered(*key, there)
            if there and not verified:
                self._acceptance.skipped(*key)

    def drafts(self, resident: Resident, drafted: int, accepted: int) -> None:
        """Learn from drafts that were verified."""
        if self._acceptance is not None and drafted:
            self._acceptance.observe(*self._tier(resident), drafted, accepted)

    def _speculation(self, residents: Sequence[Resident]) -> tuple[list[float], list[float]]:
        """Acceptance of each, and the share of steps with drafts; zeros without a speculator."""
        seen = self._acceptance
        if seen is None:
            return [0.0] * len(residents), [0.0] * len(residents)
        paces_s = self.table.tpot_s[[resident.slot for resident in residents]].tolist()
        keys = [(resident.facts.slo_class, tpot_s) for resident, tpot_s in zip(residents, paces_s, strict=True)]
        return [seen.rate(*key) for key in keys], [seen.share(*key) for key in keys]

    def _tier(self, resident: Resident) -> tuple[str, float]:
        return resident.facts.slo_class, float(self.table.tpot_s[resident.slot])

    def promote(self, request_id: str, first_token_due_s: float, next_token_due_s: float | None) -> None:
        """Make a request standard; unknown ids are requests that have ended meanwhile."""
        if (resident := self.find(request_id)) is not None:
            self.table.promote(resident.slot)
            self.table.prefill_deadline_s[resident.slot] = first_token_due_s
            self.table.next_deadline_s[resident.slot] = (
                first_token_due_s + self.table.tpot_s[resident.slot] if next_token_due_s is None else next_token_due_s
            )

    def relegate(self, request_id: str) -> None:
        """Make a request best effort."""
        if (resident := self.find(request_id)) is not None:
            self.table.relegate(resident.slot)

    def records(self, changes: Sequence[Change]) -> list[RequestRecord]:
        """Bring the table to these changes and say them to the engine's process; resets the step's own fields."""
        if not changes:
            return []
        slots = [change.resident.slot for change in changes]
        self.table.kv_blocks[slots] = [change.kv_blocks for change in changes]
        for change in changes:
            if not change.resident.decoding:
                self.sync(change.resident)
        # One read of the table for all: element by element it would be most of the step scheduler's time.
        columns = self.table.ints[:, slots].tolist()
        accept_rates, draft_shares = self._speculation([change.resident for change in changes])
        records = [
            RequestRecord(
                request_id=change.resident.facts.request_id,
                tokens=change.tokens,
                produced=change.resident.produced,
                prefill_remaining=columns[PREFILL_REMAINING][place],
                context=columns[CONTEXT][place],
                kv_blocks=columns[KV_BLOCKS][place],
                preemptions=columns[PREEMPTIONS][place],
                cached_tokens=change.resident.cached_tokens,
                draft_tokens=change.drafted,
                accepted_draft_tokens=change.accepted,
                accept_rate=accept_rates[place],
                draft_share=draft_shares[place],
                planned_tokens=change.planned,
                scheduled_tokens=change.scheduled,
                relegated=change.resident.relegated,
                kv_recomputed=change.resident.recomputed,
                gone=change.gone,
            )
            for place, change in enumerate(changes)
        ]
        for change in changes:
            change.resident.relegated = change.resident.recomputed = change.resident.changed = False
        return records


def request_facts(request: Any) -> RequestFacts:
    """Our facts of a vLLM request; one that did not come from our engine is best effort."""
    extra = request.sampling_params.extra_args if request.sampling_params is not None else None
    if extra and REQUEST_ARG in extra:
        return msgspec.convert(extra[REQUEST_ARG], RequestFacts)
    return RequestFacts(request.request_id, False, 0.0, 0.0, 1.0)
