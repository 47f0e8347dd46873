"""Requests without a promise that can still be in time: served by their deadlines, never at a promise's cost."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scheduling import registry
from scheduling.pairs import Route, Routes
from scheduling.policy import BatchPlan, ReplicaView
from scheduling.request_table import RequestTable
from scheduling.time_model import TimeModel
from scheduling.types import Candidate, EngineLimits, Slo
from tests.scheduling import residents

MODEL = TimeModel(((0.02, 1e-4, 0.0, 1e-7, 0.0, 0.0),))
LIMITS = EngineLimits(2048, 64, 16, 1000, 4096)
SLOS = registry.get("slos")


def prefill(table: RequestTable, name: str, due_s: float, tokens: int, **more: object) -> int:
    """Hopeful unless it says otherwise."""
    return residents.prefill(table, name, due_s, tokens, **{"standard": False, "hopeful": True, **more})


def decode(table: RequestTable, name: str, due_s: float, context: int = 100, **more: object) -> int:
    """Hopeful unless it says otherwise."""
    kind = {"standard": False, "hopeful": True, **more}
    return residents.decode(table, name, due_s, tpot_s=0.1, context=context, **kind)


def plan(table: RequestTable, free: int = 1000) -> BatchPlan:
    return SLOS.batching.plan(0.0, table, free, MODEL, LIMITS)


def test_the_earlier_deadline_goes_first_with_or_without_a_promise() -> None:
    table = RequestTable()
    promised = prefill(table, "p", 2.0, 3000, standard=True)
    hopeful = prefill(table, "h", 0.5, 1000)
    assert plan(table).prefill_slots.tolist()[0] == hopeful
    table.relegate(hopeful)
    assert plan(table).prefill_slots.tolist()[0] == promised


def test_whoever_would_cost_a_promise_is_given_up() -> None:
    table = RequestTable()
    promised = prefill(table, "p", 0.35, 3000, standard=True)
    hopeful = prefill(table, "h", 0.34, 1500)
    chosen = plan(table)
    assert chosen.relegate_slots.tolist() == [hopeful]
    assert chosen.prefill_slots.tolist()[0] == promised


def test_the_largest_is_given_up_so_that_the_most_are_in_time() -> None:
    """Moore and Hodgson: five of 400 tokens fit into 0.25 s, and the one of 2,000 that is due first does not."""
    table = RequestTable()
    large = prefill(table, "l", 0.24, 2000)
    small = [prefill(table, f"s{k}", 0.25, 400) for k in range(5)]
    chosen = plan(table)
    assert chosen.relegate_slots.tolist() == [large]
    assert chosen.prefill_slots.tolist() == small


def test_worth_counts_against_size() -> None:
    table = RequestTable()
    prefill(table, "l", 0.24, 2000, value=10.0)
    small = [prefill(table, f"s{k}", 0.25, 400) for k in range(5)]
    assert plan(table).relegate_slots.tolist() == small


def test_a_first_token_that_is_late_ends_the_hope() -> None:
    table = RequestTable()
    in_time, late = prefill(table, "a", 1.0, 10), prefill(table, "b", 1.0, 10)
    table.first_token(in_time, 1.0)
    table.first_token(late, 1.1)
    assert (table.hopeful[in_time], table.hopeful[late]) == (True, False)


def test_whoever_cannot_be_in_time_even_alone_is_given_up() -> None:
    table = RequestTable()
    late, possible = prefill(table, "a", 0.05, 1000), prefill(table, "b", 0.5, 1000)
    chosen = plan(table)
    assert chosen.relegate_slots.tolist() == [late]
    assert chosen.prefill_slots.tolist()[0] == possible


def test_nobody_hopeful_begins_where_memory_will_not_last() -> None:
    """Its prompt fits, but not what it and the resident will have grown to: it waits, and is not given up."""
    table = RequestTable()
    decode(table, "p", 0.2, context=1600, standard=True, remaining_output=8000)
    waits = prefill(table, "h", 5.0, 6000, remaining_output=6000)
    small = prefill(table, "s", 5.0, 160, remaining_output=10)
    chosen = plan(table, free=900)
    assert waits not in chosen.prefill_slots
    assert small in chosen.prefill_slots
    assert not len(chosen.relegate_slots)


@pytest.mark.parametrize(("tokens", "free", "begins"), [(160, 85, True), (800, 85, False), (800, 400, True)])
def test_a_large_one_begins_only_where_memory_stays_free_for_small_ones(tokens: int, free: int, begins: bool) -> None:
    table = RequestTable()
    for k in range(8):
        decode(table, f"d{k}", 1.0 + k, standard=True)
    hopeful = prefill(table, "h", 2.0, tokens)
    assert (hopeful in plan(table, free).prefill_slots) == begins


@pytest.mark.parametrize(
    ("decodes", "tokens", "begins"), [(5, 80, True), (5, 800, False), (3, 800, True), (40, 80, False)]
)
def test_it_begins_only_where_decodes_are_sustained_with_room_for_prompts(
    decodes: int, tokens: int, begins: bool
) -> None:
    """Every 25 ms each decode needs a token; a step with five of them takes 20.6 ms, with forty 24.5."""
    table = RequestTable()
    for k in range(decodes):
        residents.decode(table, f"d{k}", 2.0, tpot_s=0.025, context=100)
    hopeful = prefill(table, "h", 4.0, tokens, tpot_s=0.025)
    chosen = plan(table)
    assert (hopeful in chosen.prefill_slots) == begins
    assert not len(chosen.relegate_slots)


def test_alone_on_the_engine_it_begins_whatever_memory_says() -> None:
    table = RequestTable()
    slot = prefill(table, "h", 5.0, 6000, remaining_output=20_000)
    assert plan(table).prefill_slots.tolist() == [slot]


def test_the_hopeful_give_their_memory_to_promises_after_best_effort_did() -> None:
    table = RequestTable()
    best_effort = decode(table, "b", 0.2, context=320, hopeful=False)
    hopeful = decode(table, "h", 0.2, context=320)
    prefill(table, "p", 0.5, 800, standard=True)
    assert plan(table, free=40).preempt_slots.tolist() == [best_effort]
    chosen = plan(table, free=20)
    assert sorted(chosen.preempt_slots.tolist()) == sorted([best_effort, hopeful])
    assert hopeful not in chosen.decode_slots


@st.composite
def tables(draw: st.DrawFn) -> tuple[RequestTable, int]:
    """Promised and hopeful requests in prefill and decode, and the blocks that they leave free."""
    table = RequestTable()
    free = 1000
    for k in range(draw(st.integers(1, 12))):
        kind = {"standard": (promised := draw(st.booleans())), "hopeful": not promised}
        if draw(st.booleans()):
            context = draw(st.integers(16, 1000))
            decode(
                table, f"{k}", draw(st.floats(0.0, 0.3)), context, remaining_output=draw(st.integers(1, 300)), **kind
            )
            free -= -(-context // 16)
        else:
            prefill(
                table,
                f"{k}",
                draw(st.floats(0.0, 1.5)),
                draw(st.integers(1, 4000)),
                value=draw(st.sampled_from([1.0, 3.0])),
                **kind,
            )
    return table, max(free, 0)


@given(tables())
@settings(max_examples=300, deadline=None)
def test_promises_are_kept_as_if_nobody_hoped(case: tuple[RequestTable, int]) -> None:
    """The same promises are given up, and what admission held feasible before the step is feasible after it."""
    table, free = case
    chosen = SLOS.batching.plan(0.0, table, free, MODEL, LIMITS)
    without = table.copy()
    for slot in without.slots().tolist():
        if without.hopeful[slot]:
            without.remove(without.request_id(slot))
    promised = set(np.flatnonzero(table.active & table.standard).tolist())
    alone = SLOS.batching.plan(0.0, without, free, MODEL, LIMITS)
    assert promised & set(chosen.relegate_slots.tolist()) == set(alone.relegate_slots.tolist())
    for slots in (chosen.decode_slots, chosen.prefill_slots):
        assert not set(slots.tolist()) & set(chosen.preempt_slots.tolist())
    assert len(chosen.decode_slots) + len(chosen.prefill_slots) > 0
    assert not set(chosen.preempt_slots.tolist()) & promised or free == 0


def view(name: str, table: RequestTable, role: str = "both", cached: int = 0) -> ReplicaView:
    return ReplicaView(name, table, 1000, MODEL, LIMITS, role, {"c": cached})


def test_hope_goes_where_least_prompt_work_is_ahead() -> None:
    busy, idle, given_up = RequestTable(), RequestTable(), RequestTable()
    prefill(busy, "x", 1.0, 500)
    prefill(given_up, "x", 1.0, 500, hopeful=False)
    candidate = Candidate("c", 0.0, 1000, Slo(0.5, 0.1), 10, 20)

    def hope(*views: ReplicaView) -> Route | None:
        return Routes(views).hopeful(candidate, views)

    assert hope(view("a", busy), view("b", idle)) == Route(1)
    assert hope(view("a", busy, cached=800), view("b", idle)) == Route(0)
    assert hope(view("a", busy), view("b", given_up)) == Route(1)
    assert hope(view("p", idle, "prefill"), view("d", idle, "decode")) is None


@pytest.mark.parametrize("name", ["slos", "edf-exact"])
def test_gentle_promises_leave_the_hopeful_their_place(name: str) -> None:
    policy = registry.get(name)
    assert policy.gentle is not None
    assert policy.hope is not None
    table = RequestTable()
    prefill(table, "h", 0.25, 2000)
    candidates = [Candidate("c", 0.0, 1500, Slo(0.25, 0.1), 10, 20)]
    assert policy.admission.decide(0.0, table, 1000, MODEL, LIMITS, candidates).accepted == ("c",)
    assert policy.gentle.decide(0.0, table, 1000, MODEL, LIMITS, candidates).accepted == ()
    assert policy.hope.decide(0.0, table, 1000, MODEL, LIMITS, candidates).accepted == ()
