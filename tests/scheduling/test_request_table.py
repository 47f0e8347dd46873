"""The table keeps one slot per request, whatever comes and goes, and its columns stay consistent."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scheduling.kernels.decoded import UNKNOWN, token_each
from scheduling.request_table import RequestTable


@given(st.lists(st.tuples(st.integers(0, 12), st.integers(1, 500)), max_size=60))
@settings(max_examples=200, deadline=None)
def test_slots_stay_with_their_requests(actions: list[tuple[int, int]]) -> None:
    """Adding a present id removes it; slots, ids and columns agree with a plain dictionary at every moment."""
    table = RequestTable(1)
    expected: dict[str, tuple[int, int]] = {}
    order: list[str] = []
    for number, prompt in actions:
        request_id = f"r{number}"
        if request_id in expected:
            table.remove(request_id)
            del expected[request_id]
            order.remove(request_id)
        else:
            slot = table.add(request_id, prompt_tokens=prompt, prefill_deadline_s=1.0, tpot_s=0.1)
            expected[request_id] = (slot, prompt)
            order.append(request_id)
        assert len(table) == len(expected)
        assert {slot for slot, _ in expected.values()} == set(np.flatnonzero(table.active).tolist())
        assert all(table.slot(key) == slot for key, (slot, _) in expected.items())
        assert all(table.prompt_tokens[slot] == tokens for slot, tokens in expected.values())
        assert [table.request_id(int(slot)) for slot in table.slots()] == order
        assert table.high_water <= len(actions)
        assert not table.active[table.high_water :].any()
    copy = table.copy()
    for request_id in order:
        table.remove(request_id)
    assert len(table) == 0
    assert len(copy) == len(order)


def test_a_request_through_its_life() -> None:
    table = RequestTable()
    slot = table.add("a", prompt_tokens=10, prefill_deadline_s=1.0, tpot_s=0.1, answer_tpot_s=0.2, remaining_output=3)
    table.prefilled(slot, 4)
    assert (table.prefill_remaining[slot], table.context[slot]) == (6, 4)
    with pytest.raises(ValueError, match="6 remain"):
        table.prefilled(slot, 7)
    table.prefilled(slot, 6)
    table.first_token(slot, 0.5)
    assert table.next_deadline_s[slot] == pytest.approx(1.1), "an early first token moves no deadline forward"
    table.tokens_out(slot, 2)
    assert (table.generated[slot], table.context[slot], table.remaining_output[slot]) == (3, 12, 1)
    assert table.next_deadline_s[slot] == pytest.approx(1.3)
    table.thinking_ended(slot)
    assert table.next_deadline_s[slot] == pytest.approx(1.4)
    assert table.tpot_s[slot] == 0.2
    table.preempted(slot)
    assert (table.prefill_remaining[slot], table.context[slot], table.kv_blocks[slot]) == (13, 0, 0)


@given(st.lists(st.tuples(st.integers(1, 400), st.integers(1, 5), st.booleans()), min_size=1, max_size=30))
@settings(max_examples=100, deadline=None)
def test_one_token_for_each_is_one_after_the_other(rows: list[tuple[int, int, bool]]) -> None:
    one, all_at_once = RequestTable(), RequestTable()
    for table in (one, all_at_once):
        for number, (prompt, remaining, _) in enumerate(rows):
            slot = table.add(
                f"r{number}", prompt_tokens=prompt, prefill_deadline_s=1.0, tpot_s=0.1, remaining_output=remaining
            )
            table.first_token(slot, 0.5 + number)
    chosen = [number for number, (_, _, decodes) in enumerate(rows) if decodes]
    for blocks in range(3):
        for slot in chosen:
            one.tokens_out(slot, 1)
            one.kv_blocks[slot] = blocks + slot
        slots = np.array(chosen, np.int64)
        contexts = token_each(all_at_once.ints, all_at_once.floats, slots, slots + blocks)
        assert (contexts == one.context[chosen]).all()
    token_each(all_at_once.ints, all_at_once.floats, slots, UNKNOWN)
    for slot in chosen:
        one.tokens_out(slot, 1)
    assert (one.ints == all_at_once.ints).all()
    assert (one.floats == all_at_once.floats).all()


def test_what_is_not_there_is_named() -> None:
    table = RequestTable()
    table.add("a", prompt_tokens=1, prefill_deadline_s=0.0, tpot_s=0.1)
    with pytest.raises(ValueError, match="'a' is in the table"):
        table.add("a", prompt_tokens=1, prefill_deadline_s=0.0, tpot_s=0.1)
    with pytest.raises(KeyError, match="'b' is not resident"):
        table.remove("b")
    with pytest.raises(KeyError, match="slot 5 holds no request"):
        table.request_id(5)
    with pytest.raises(ValueError, match="at least 1"):
        RequestTable(0)
