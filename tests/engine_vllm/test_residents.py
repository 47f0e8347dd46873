"""The planner's table against vLLM's own request objects."""

from __future__ import annotations

import msgspec
import pytest
from vllm.sampling_params import SamplingParams
from vllm.v1.request import Request

from engine.vllm.messages import REQUEST_ARG, RequestFacts
from engine.vllm.residents import Change, Resident, Residents


def facts(**fields: object) -> RequestFacts:
    """Facts of a request that came at 10 s: first token due at 12 s, then one every 0.1 s."""
    values = {
        "request_id": "r",
        "standard": True,
        "arrival_s": 10.0,
        "first_token_due_s": 12.0,
        "tpot_s": 0.1,
        "expected_output_tokens": 40,
    }
    return RequestFacts(**{**values, **fields})  # type: ignore[arg-type]


def admit(residents: Residents, prompt: int, **fields: object) -> Resident:
    """Add a request with `prompt` tokens (prior output among them)."""
    given = facts(**fields)
    params = SamplingParams(max_tokens=100, extra_args={REQUEST_ARG: msgspec.to_builtins(given)})
    return residents.admit(Request(f"{given.request_id}-1a2b", list(range(prompt)), params, None))


def compute(residents: Residents, resident: Resident, chunk: int, tokens: list[int], at_s: float) -> None:
    """One step of vLLM's for one request."""
    resident.request.num_computed_tokens += chunk
    resident.request.append_output_token_ids(list(tokens))
    if tokens:
        residents.tokens(resident, tokens, at_s)
    residents.records([Change(resident, 1 + resident.request.num_computed_tokens // 128, tokens)])


def test_prefill_then_decode_along_the_due_line() -> None:
    residents = Residents(4, speculates=False)
    table, resident = residents.table, admit(residents, 300)
    slot = resident.slot
    compute(residents, resident, 200, [], 10.5)
    assert (table.prefill_remaining[slot], table.context[slot]) == (100, 200)
    compute(residents, resident, 100, [7], 11.0)
    assert (table.prefill_remaining[slot], table.context[slot], table.generated[slot]) == (0, 300, 1)
    assert table.next_deadline_s[slot] == pytest.approx(12.1)
    compute(residents, resident, 1, [8], 11.2)
    assert table.next_deadline_s[slot] == pytest.approx(12.2)
    assert table.context[slot] == 301
    assert resident.produced == 2


def test_preemption_keeps_tokens_and_due_line() -> None:
    residents = Residents(4, speculates=False)
    table, resident = residents.table, admit(residents, 300)
    compute(residents, resident, 300, [7], 11.0)
    compute(residents, resident, 1, [8], 11.1)
    resident.request.num_computed_tokens = 0
    residents.preempted(resident.request.request_id)
    slot = resident.slot
    assert (table.prefill_remaining[slot], table.context[slot], table.kv_blocks[slot]) == (302, 0, 0)
    compute(residents, resident, 200, [], 11.5)
    assert table.prefill_remaining[slot] == 102
    compute(residents, resident, 102, [9], 11.6)
    assert (table.prefill_remaining[slot], table.generated[slot]) == (0, 3)
    assert table.next_deadline_s[slot] == pytest.approx(12.3)


def test_a_resumed_request_counts_its_prior_output() -> None:
    residents = Residents(4, speculates=False)
    resident = admit(residents, 300, prior_tokens=100, next_token_due_s=20.0)
    table, slot = residents.table, resident.slot
    assert (table.prompt_tokens[slot], table.generated[slot], table.prefill_remaining[slot]) == (200, 100, 300)
    assert table.remaining_output[slot] == 1
    compute(residents, resident, 300, [7], 19.0)
    assert table.next_deadline_s[slot] == pytest.approx(20.1)
    assert (table.generated[slot], table.context[slot], resident.produced) == (101, 300, 1)


def test_the_end_of_thinking_moves_the_tier() -> None:
    """Tokens up to the marker are due at the thinking pace, those after it at the answer's."""
    residents = Residents(4, speculates=True)
    fields = {"thinking_tpot_s": 0.05, "thinking_end_token_id": 99, "tpot_s": 0.5}
    resident = admit(residents, 10, **fields)
    table, slot = residents.table, resident.slot
    assert table.tpot_s[slot] == 0.05
    compute(residents, resident, 10, [1], 11.0)
    compute(residents, resident, 1, [2], 11.1)
    compute(residents, resident, 4, [3, 99, 4, 5], 11.2)
    assert table.tpot_s[slot] == 0.5
    # Three thinking tokens after the first, two of the answer, and the next one of the answer.
    assert table.next_deadline_s[slot] == pytest.approx(12.0 + 3 * 0.05 + 3 * 0.5)
    done = admit(residents, 10, request_id="s", thinking_done=True, **fields)
    assert table.tpot_s[done.slot] == 0.5


def test_records_say_what_changed_once() -> None:
    residents = Residents(4, speculates=False)
    first, second = admit(residents, 300), admit(residents, 40, request_id="s")
    first.request.num_computed_tokens = 200
    second.relegated = second.changed = True
    one, two = residents.records([Change(first, 2, [], planned=200, scheduled=200), Change(second, 0, gone=True)])
    assert (one.request_id, one.prefill_remaining, one.context, one.kv_blocks) == ("r", 100, 200, 2)
    assert (one.planned_tokens, one.scheduled_tokens, one.relegated, one.gone) == (200, 200, False, False)
    assert (two.request_id, two.kv_blocks, two.relegated, two.gone) == ("s", 0, True, True)
    assert not second.changed
    assert not residents.records([Change(second, 0)])[0].relegated
    assert residents.records([]) == []


def test_decodes_in_bulk_are_decodes_one_by_one() -> None:
    """The table, and what is said of it."""
    sides = []
    for _ in range(2):
        residents = Residents(4, speculates=False)
        both = admit(residents, 300), admit(residents, 40, request_id="s", prior_tokens=7, next_token_due_s=13.0)
        for resident in both:
            resident.cached_tokens = 32
            assert not resident.steady
            compute(residents, resident, resident.request.num_tokens, [7], 11.0)
            assert resident.steady
        sides.append((residents, both))
    (one_by_one, each), (bulk, all_of) = sides
    expected = []
    for number, resident in enumerate(each):
        one_by_one.tokens(resident, [8 + number], 11.2)
        change = Change(resident, 3 + number, [8 + number], planned=1, scheduled=1)
        expected += one_by_one.records([change])
    said = bulk.one_token_each(all_of, [8, 9], [3, 4], planned_tokens=1)
    assert said is not None
    assert said.each() == expected
    assert (bulk.table.ints == one_by_one.table.ints).all()
    assert (bulk.table.floats == one_by_one.table.floats).all()
    assert bulk.one_token_each([], [], [], 1) is None


def test_speculation_is_learned_by_class_and_planned_for_whoever_has_drafts() -> None:
    residents = Residents(4, speculates=True)
    coder, chat = admit(residents, 5, slo_class="coder"), admit(residents, 5, request_id="s", slo_class="chat")
    for resident in (coder, chat):
        compute(residents, resident, 5, [7], 11.0)
    for step in range(300):
        coder.request.spec_token_ids = [1, 2, 3, 4]
        chat.request.spec_token_ids = [1, 2, 3, 4] if step % 4 == 0 else []
        residents.drafts_at_hand()
        for resident, right in ((coder, 4), (chat, 1)):
            residents.verifies(resident, 4)
            if there := len(resident.request.spec_token_ids):
                residents.drafts(resident, there, min(right, there))
    table = residents.table
    assert table.accept_rate[coder.slot] > 0.95
    assert table.draft_share[coder.slot] > 0.95
    # In the last step there were none; what plans count on, and the controller hears, is what holds for the class.
    assert (table.has_drafts[coder.slot], table.has_drafts[chat.slot]) == (True, False)
    assert 0.4 < table.accept_rate[chat.slot] < 0.6  # of two that were tried, one was right
    assert 0.2 < table.draft_share[chat.slot] < 0.4
    (said,) = residents.records([Change(chat, 1)])
    assert said.accept_rate == pytest.approx(table.accept_rate[chat.slot], abs=0.01)
    assert said.draft_share == pytest.approx(table.draft_share[chat.slot], abs=0.01)
    # Drafts that are left alone: acceptance is forgotten slowly, for another try.
    residents.drafts_at_hand()
    learned = table.accept_rate[coder.slot]
    for _ in range(1000):
        residents.verifies(coder, 0)
    residents.drafts_at_hand()
    assert 0.9 < table.accept_rate[coder.slot] < learned
    newcomer = admit(residents, 5, request_id="t", slo_class="coder")
    residents.drafts_at_hand()
    assert table.accept_rate[newcomer.slot] > 0.9


def test_promotion_relegation_and_requests_of_others() -> None:
    residents = Residents(4, speculates=False)
    resident = admit(residents, 5, standard=False)
    residents.promote("r", 50.0, None)
    assert residents.table.standard[resident.slot]
    assert residents.table.next_deadline_s[resident.slot] == pytest.approx(50.1)
    residents.relegate("r")
    assert not residents.table.standard[resident.slot]
    residents.promote("gone", 1.0, None)
    residents.relegate("gone")
    foreign = residents.admit(Request("foreign", [1, 2], SamplingParams(max_tokens=3), None))
    assert not residents.table.standard[foreign.slot]
    assert residents.remove("foreign") is foreign
    assert residents.remove("foreign") is None
    assert "foreign" not in residents.table
