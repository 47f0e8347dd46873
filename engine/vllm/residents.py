"""The requests of one vLLM scheduler, mirrored into the planner's request table."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import msgspec

from engine.vllm.messages import REQUEST_ARG, RequestFacts, RequestRecord
from scheduling.request_table import RequestTable

ACCEPT_RATE_GUESS = 0.5
ACCEPT_RATE_WEIGHT = 0.05


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


@dataclass(slots=True)
class AcceptRates:
    """Acceptance of drafted tokens per SLO class, as an exponential average over drafts."""

    rates: dict[str, float] = field(default_factory=dict)

    def rate(self, slo_class: str) -> float:
        """Estimate for a class."""
        return self.rates.get(slo_class, ACCEPT_RATE_GUESS)

    def observe(self, slo_class: str, drafted: int, accepted: int) -> None:
        """Account for one verified draft: `accepted` tokens were right, and the one after them, if any, was wrong."""
        rate = self.rate(slo_class)
        for right in [1.0] * accepted + [0.0] * (drafted > accepted):
            rate += ACCEPT_RATE_WEIGHT * (right - rate)
        self.rates[slo_class] = rate


class Residents:
    """Keeps the table true to vLLM's requests."""

    def __init__(self, capacity: int, speculates: bool) -> None:
        """speculates: whether the engine has a speculator; without one no acceptance is estimated."""
        self.table = RequestTable(capacity)
        self.by_vllm_id: dict[str, Resident] = {}
        self.by_slot: dict[int, Resident] = {}
        self.accept_rates = AcceptRates() if speculates else None

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
            remaining_output=max(facts.expected_output_tokens - facts.prior_tokens, 1),
            max_remaining_output=request.max_tokens,
            value=facts.value,
            arrival_s=facts.arrival_s,
            accept_rate=self.accept_rates.rate(facts.slo_class) if self.accept_rates else 0.0,
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

    def sync(self, resident: Resident, kv_blocks: int) -> None:
        """Take computed tokens and blocks from vLLM's request."""
        table, slot, request = self.table, resident.slot, resident.request
        table.kv_blocks[slot] = kv_blocks
        if resident.decoding:
            table.prefill_remaining[slot] = 0
            return
        remaining = request.num_tokens - request.num_computed_tokens
        table.prefill_remaining[slot] = max(remaining, 0)
        table.context[slot] = request.num_computed_tokens

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

    def drafts(self, resident: Resident, drafted: int, accepted: int) -> None:
        """Learn from verified drafts."""
        if self.accept_rates is not None and drafted:
            slo_class = resident.facts.slo_class
            self.accept_rates.observe(slo_class, drafted, accepted)
            self.table.accept_rate[resident.slot] = self.accept_rates.rate(slo_class)

    def promote(self, request_id: str, first_token_due_s: float, next_token_due_s: float | None) -> None:
        """Make a request standard; unknown ids are requests that have ended meanwhile."""
        if (resident := self.find(request_id)) is not None:
            self.table.standard[resident.slot] = True
            self.table.prefill_deadline_s[resident.slot] = first_token_due_s
            self.table.next_deadline_s[resident.slot] = (
                first_token_due_s + self.table.tpot_s[resident.slot] if next_token_due_s is None else next_token_due_s
            )

    def relegate(self, request_id: str) -> None:
        """Make a request best effort."""
        if (resident := self.find(request_id)) is not None:
            self.table.standard[resident.slot] = False

    def record(
        self,
        resident: Resident,
        tokens: list[int],
        planned: int,
        scheduled: int,
        drafted: int,
        accepted: int,
        *,
        gone: bool,
    ) -> RequestRecord:
        """What the step changed, for the engine's process; resets the step's own fields."""
        table, slot = self.table, resident.slot
        record = RequestRecord(
            request_id=resident.facts.request_id,
            tokens=tokens,
            produced=resident.produced,
            prefill_remaining=int(table.prefill_remaining[slot]),
            context=int(table.context[slot]),
            kv_blocks=0 if gone else int(table.kv_blocks[slot]),
            preemptions=int(table.preemptions[slot]),
            cached_tokens=resident.cached_tokens,
            draft_tokens=drafted,
            accepted_draft_tokens=accepted,
            planned_tokens=planned,
            scheduled_tokens=scheduled,
            relegated=resident.relegated,
            kv_recomputed=resident.recomputed,
            gone=gone,
        )
        resident.relegated = resident.recomputed = resident.changed = False
        return record


def request_facts(request: Any) -> RequestFacts:
    """Our facts of a vLLM request; one that did not come from our engine is best effort."""
    extra = request.sampling_params.extra_args if request.sampling_params is not None else None
    if extra and REQUEST_ARG in extra:
        return msgspec.convert(extra[REQUEST_ARG], RequestFacts)
    return RequestFacts(request.request_id, False, 0.0, 0.0, 1.0)
