"""Plans of single steps: who runs, who waits, who is preempted, who is given up."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from scheduling import registry
from scheduling.batch_settings import DEFAULT_SETTINGS
from scheduling.kernels.batches import batch_cap
from scheduling.kernels.step import batch_caps
from scheduling.policy import BatchPlan
from scheduling.request_table import RequestTable
from scheduling.time_model import BatchShape, TimeModel
from scheduling.types import EngineLimits
from tests.scheduling.residents import decode, prefill

MODEL = TimeModel(((0.02, 1e-4, 0.0, 1e-7, 0.0, 0.0),))
LIMITS = EngineLimits(2048, 64, 16, 1000, 4096)
POLICIES = ("slos", "dp")


@settings(deadline=None)
@given(st.floats(0.001, 0.2), st.floats(0.0, 2.0))
def test_the_cap_on_a_batch_is_the_kernels(step_s: float, tightest_s: float) -> None:
    caps = batch_caps(TimeModel(((step_s, 0.0, 0.0, 0.0, 0.0, 0.0),)).array, DEFAULT_SETTINGS.array)
    assert DEFAULT_SETTINGS.cap_s(step_s, tightest_s) == pytest.approx(batch_cap(tightest_s, caps))


def plan(table: RequestTable, free: int = 800, now_s: float = 0.0, policy: str = "slos", **limits: int) -> BatchPlan:
    chosen = EngineLimits(
        limits.get("max_batch_tokens", LIMITS.max_batch_tokens),
        limits.get("max_batch_requests", LIMITS.max_batch_requests),
        16,
        1000,
        4096,
    )
    return registry.get(policy).batching.plan(now_s, table, free, MODEL, chosen)


@pytest.mark.parametrize("policy", POLICIES)
def test_batch_is_as_large_as_the_tightest_deadline_allows(policy: str) -> None:
    table = RequestTable()
    slot = decode(table, "d", 0.05)
    waiting = prefill(table, "p", 5.0, 3000)
    got = plan(table, policy=policy)
    assert got.decode_slots.tolist() == [slot]
    assert got.prefill_slots.tolist() == [waiting]
    # 0.05 s = 0.02 + 1e-4 * tokens + 1e-7 * 100: 299 tokens beside the decode's own.
    assert got.prefill_tokens.tolist() == [298]
    assert got.predicted_s <= 0.05


def test_batch_is_longer_without_tight_decodes() -> None:
    table = RequestTable()
    decode(table, "d", 0.3, tpot_s=0.1)
    prefill(table, "p", 5.0, 3000)
    assert plan(table).predicted_s == pytest.approx(0.2, abs=0.01)


@pytest.mark.parametrize(("tokens", "longest_s"), [(8000, 0.08), (8950, 0.2)])
def test_a_short_ttft_among_residents_keeps_batches_short_unless_a_promise_needs_long_ones(
    tokens: int, longest_s: float
) -> None:
    table = RequestTable()
    decode(table, "d", 5.0, tpot_s=1.0, arrival_s=-0.1)
    # A batch of 0.2 s computes 1,799 tokens and one of 0.08 s 599: after that, 8,799 would be done by 1 s.
    prefill(table, "p", 1.0, tokens)
    assert plan(table).predicted_s == pytest.approx(longest_s, abs=0.001)


def test_the_earliest_prefill_deadline_bounds_the_batch() -> None:
    table = RequestTable()
    prefill(table, "first", 0.06, 200)
    prefill(table, "second", 5.0, 3000)
    got = plan(table)
    assert got.prefill_tokens.tolist() == [200, 200]
    assert got.predicted_s <= 0.06


def test_looser_decodes_skip_a_batch_that_a_prefill_needs() -> None:
    table = RequestTable()
    tight = decode(table, "tight", 0.05, tpot_s=0.05)
    loose = [decode(table, f"loose{k}", 0.1, tpot_s=0.1) for k in range(40)]
    # Needs all 260 tokens of this batch: there is no room for the loose decodes beside it.
    prefill(table, "p", 0.05, 280)
    got = plan(table)
    assert tight in got.decode_slots
    assert got.prefill_tokens.tolist() == [280]
    assert not set(loose) & set(got.decode_slots.tolist())


def test_decodes_run_ahead_when_no_prefill_suffers() -> None:
    table = RequestTable()
    slots = [decode(table, f"d{k}", 0.5 + k, tpot_s=0.1) for k in range(5)]
    prefill(table, "p", 9.0, 500)
    assert sorted(plan(table).decode_slots.tolist()) == slots


@pytest.mark.parametrize(("free", "waiting", "runs_ahead"), [(800, 3000, False), (800, 200, True), (20, 3000, True)])
def test_decodes_far_ahead_wait_for_prompts_while_memory_is_free(free: int, waiting: int, runs_ahead: bool) -> None:
    table = RequestTable()
    near, far = decode(table, "near", due_s=0.5), decode(table, "far", due_s=30.0)
    prefill(table, "p", due_s=5.0, tokens=waiting, kv_blocks=200)
    slots = plan(table, free).decode_slots.tolist()
    assert near in slots
    assert (far in slots) == runs_ahead


def test_missed_requests_are_given_up_at_once() -> None:
    table = RequestTable()
    late = decode(table, "late", -0.01)
    hopeless = prefill(table, "hopeless", 0.1, 2000)
    fine = decode(table, "fine", 0.05)
    got = plan(table)
    assert sorted(got.relegate_slots.tolist()) == sorted([late, hopeless])
    assert fine in got.decode_slots


def test_the_largest_prefill_is_given_up_when_not_all_can_be_kept() -> None:
    table = RequestTable()
    small = [prefill(table, f"s{k}", 0.12, 300) for k in range(3)]
    big = prefill(table, "big", 0.11, 800)
    got = plan(table)
    assert got.relegate_slots.tolist() == [big]
    assert set(small) <= set(got.prefill_slots.tolist())


def test_value_decides_who_is_given_up() -> None:
    table = RequestTable()
    cheap = [prefill(table, f"s{k}", 0.12, 300) for k in range(3)]
    dear = prefill(table, "dear", 0.11, 800, value=100.0)
    got = plan(table)
    assert dear in got.prefill_slots
    assert set(got.relegate_slots.tolist()) <= set(cheap)
    assert len(got.relegate_slots) >= 1


def test_best_effort_is_preempted_last_in_first_out() -> None:
    table = RequestTable()
    decode(table, "standard", 0.05, context=160)
    old = decode(table, "old", 0.0, standard=False, arrival_s=1.0)
    young = decode(table, "young", 0.0, standard=False, arrival_s=2.0)
    prefill(table, "p", 0.5, 64)
    got = plan(table, free=0)
    assert got.preempt_slots.tolist() == [young]
    assert old not in got.preempt_slots


def test_standard_is_preempted_latest_deadline_first_when_nothing_else_is_left() -> None:
    table = RequestTable()
    keep = decode(table, "keep", 0.05, context=160)
    drop = decode(table, "drop", 0.9, context=160)
    got = plan(table, free=0)
    assert got.preempt_slots.tolist() == [drop]
    assert got.decode_slots.tolist() == [keep]


def test_best_effort_starts_only_while_memory_is_free() -> None:
    table = RequestTable()
    decode(table, "standard", 0.2, tpot_s=0.2)
    waiting = prefill(table, "waits", 0.0, 160, standard=False, arrival_s=0.0)
    assert waiting in plan(table, free=900).prefill_slots
    assert waiting not in plan(table, free=150).prefill_slots
    # After its minute of waiting the watermark no longer holds it back, in a turn.
    table.next_deadline_s[0] += 80.0
    assert waiting in plan(table, free=150, now_s=80.0).prefill_slots


def test_best_effort_goes_first_come_first_served() -> None:
    table = RequestTable()
    for k in range(6):
        prefill(table, f"b{k}", 0.0, 400, standard=False, arrival_s=float(-k))
    got = plan(table)
    assert got.prefill_slots[0] == table.slot("b5")


def test_best_effort_does_not_delay_a_promise() -> None:
    table = RequestTable()
    decode(table, "d", 0.0205, tpot_s=0.0205)
    for k in range(20):
        decode(table, f"b{k}", 0.0, standard=False, arrival_s=0.0)
    got = plan(table)
    assert got.predicted_s <= 0.0205 + 1e-9
    assert 0 in got.decode_slots


def test_requests_beyond_the_engines_places_preempt_best_effort() -> None:
    table = RequestTable()
    for k in range(4):
        decode(table, f"b{k}", 0.0, standard=False, arrival_s=float(k))
    new = prefill(table, "p", 0.5, 100)
    got = plan(table, max_batch_requests=4)
    assert got.preempt_slots.tolist() == [table.slot("b3")]
    assert new in got.prefill_slots


resident = st.tuples(
    st.booleans(),  # standard
    st.integers(0, 1500),  # prefill remaining
    st.integers(0, 1200),  # context
    st.floats(-0.2, 2.0),  # due
    st.sampled_from([0.02, 0.05, 0.1]),
    st.floats(-100.0, 0.0),  # arrival
)


@pytest.mark.parametrize("policy", ["slos", "dp", "vllm-v1", "sarathi", "qoserve", "vllm"])
@settings(max_examples=150, deadline=None)
@given(drawn=st.lists(resident, min_size=1, max_size=14), free=st.integers(0, 400), places=st.integers(2, 20))
@example(drawn=[(False, 1441, 0, 0.0, 0.02, 0.0), (False, 1, 1, 0.0, 0.02, 0.0)], free=100, places=2)
@example(drawn=[(True, 17, 0, 1.0, 0.02, 0.0), (True, 1, 1, 1.0, 0.02, 0.0)], free=0, places=2)
def test_every_plan_can_be_carried_out(
    policy: str, drawn: list[tuple[bool, int, int, float, float, float]], free: int, places: int
) -> None:
    """The conformance suite of all batch policies."""
    table = RequestTable(2)
    for k, (standard, remaining, context, due, tpot, arrival) in enumerate(drawn):
        decoding = remaining == 0
        held = max(context, 1) if decoding else (context if k % 2 else 0)
        running = k < places
        held = held if running or decoding else 0
        table.add(
            f"{k}",
            prompt_tokens=held if decoding else held + remaining,
            generated=1 if decoding else 0,
            context=held,
            prefill_remaining=remaining,
            prefill_deadline_s=due,
            next_deadline_s=due,
            tpot_s=tpot,
            standard=standard,
            arrival_s=arrival,
            kv_blocks=-(-held // 16),
        )
    limits = EngineLimits(512, max(places, int((table.kv_blocks > 0).sum())), 16, 1000, 4096)
    before = table.copy()
    got = registry.get(policy).batching.plan(0.0, table, free, MODEL, limits)
    assert (table.ints == before.ints).all()
    assert (table.floats == before.floats).all()
    assert (table.flags == before.flags).all()
    decodes, prefills = got.decode_slots.tolist(), got.prefill_slots.tolist()
    preempted = set(got.preempt_slots.tolist())
    assert len(set(decodes + prefills)) == len(decodes + prefills)
    assert not preempted & set(decodes + prefills)
    assert all(table.active[slot] for slot in [*decodes, *prefills, *preempted])
    assert all(table.prefill_remaining[slot] == 0 for slot in decodes)
    assert all(0 < n <= table.prefill_remaining[s] for s, n in zip(prefills, got.prefill_tokens, strict=True))
    assert len(decodes) == len(got.spec_tokens)
    assert int(got.spec_tokens.sum() + got.prefill_tokens.sum()) <= limits.max_batch_tokens
    assert len(decodes) + len(prefills) <= limits.max_batch_requests
    freed = free + int(table.kv_blocks[list(preempted)].sum())
    tokens = [*got.spec_tokens.tolist(), *got.prefill_tokens.tolist()]
    need = 0
    for slot, count in zip(decodes + prefills, tokens, strict=True):
        need += max(0, -(-int(table.context[slot] + count) // 16) - int(table.kv_blocks[slot]))
    assert need <= freed
    could_run = free >= 100 or any(table.prefill_remaining[s] == 0 and table.context[s] % 16 for s in range(len(drawn)))
    if could_run and not preempted:
        assert decodes or prefills, "an empty plan while a request could run"
    if decodes or prefills:
        kv = float(table.context[got.decode_slots].sum())
        chunks, context = got.prefill_tokens, table.context[got.prefill_slots]
        attention = float((chunks * (context + 0.5 * chunks)).sum())
        shape = BatchShape(float(sum(tokens)), len(decodes) + len(prefills), kv, attention)
        assert got.predicted_s == pytest.approx(MODEL.duration_s(shape), rel=1e-6)


@settings(max_examples=200, deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_a_plan_leaves_a_feasible_replica_feasible(seed: int) -> None:
    """What the oracle holds feasible stays so after the planned step, run exactly as predicted."""
    from scheduling.admission import build

    rng = np.random.default_rng(seed)
    table = RequestTable()
    for k in range(rng.integers(1, 12)):
        decode(table, f"d{k}", 0.03 + 0.1 * rng.random(), float(rng.choice([0.05, 0.1])), int(rng.integers(10, 900)))
    for k in range(rng.integers(0, 4)):
        prefill(table, f"p{k}", 0.05 + rng.random(), int(rng.integers(10, 1200)))
    for k in range(rng.integers(0, 3)):
        prefill(table, f"b{k}", 0.0, int(rng.integers(10, 900)), standard=False)

    def holds(now_s: float) -> bool:
        problem = build(now_s, table, 500, MODEL, LIMITS, [], DEFAULT_SETTINGS)
        nobody = np.zeros(0, dtype=np.bool_)
        standard = int((table.active & table.standard).sum())
        return len(problem.residents) == standard and problem.feasible(nobody)

    if not holds(0.0):
        return
    got = plan(table)
    assert not len(got.relegate_slots)
    end = got.predicted_s
    for slot in got.decode_slots:
        assert table.next_deadline_s[slot] >= end - 1e-9 or not table.standard[slot]
        table.tokens_out(int(slot), 1)
    for slot, chunk in zip(got.prefill_slots, got.prefill_tokens, strict=True):
        table.prefilled(int(slot), int(chunk))
        if table.prefill_remaining[slot] == 0:
            table.first_token(int(slot), end)
    assert holds(end)
