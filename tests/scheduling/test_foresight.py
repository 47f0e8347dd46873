"""The table after a planned step equals what an engine's own, request by request, comes to."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scheduling import registry
from scheduling.foresight import after_step
from scheduling.request_table import RequestTable
from scheduling.time_model import TimeModel
from scheduling.types import EngineLimits
from tests.scheduling.driver import Job, add, candidate, grow
from tests.scheduling.test_promise import OPT_13B, jobs

MODEL = TimeModel(((0.02, 2e-4, 0.0, 1e-6, 0.0, 0.0),), margin=1.1)
LIMITS = EngineLimits(256, 8, 16, 200, 2048)

Row = tuple[int, int, int, float, float, bool]
rows = st.lists(
    st.tuples(
        st.integers(1, 300),
        st.integers(0, 300),
        st.integers(0, 40),
        st.floats(0.0, 2.0),
        st.floats(0.03, 0.5),
        st.booleans(),
    ),
    min_size=1,
    max_size=8,
)


def table_of(given_rows: list[Row]) -> RequestTable:
    table = RequestTable(8)
    for number, (prompt, computed, output, due_s, tpot_s, standard) in enumerate(given_rows):
        decodes = output > 0
        context = prompt + output - 1 if decodes else min(computed, prompt - 1)
        table.add(
            f"{number}",
            prompt_tokens=prompt,
            prefill_deadline_s=due_s,
            tpot_s=tpot_s,
            standard=standard,
            context=context,
            generated=output,
            remaining_output=20,
            kv_blocks=-(-context // LIMITS.block_size),
        )
    return table


@settings(max_examples=300, deadline=None)
@given(rows)
def test_the_step_is_applied_as_an_engine_applies_it(given_rows: list[Row]) -> None:
    table = table_of(given_rows)
    before = table.copy()
    free = LIMITS.total_blocks - int(table.kv_blocks.sum())
    plan = registry.get("slos").batching.plan(0.0, table, free, MODEL, LIMITS)
    end_s = plan.predicted_s
    got, got_free = after_step(table, free, plan, end_s, LIMITS.block_size)
    assert (table.ints == before.ints).all()
    assert (table.floats == before.floats).all()
    assert (table.flags == before.flags).all()

    for slot in plan.relegate_slots.tolist():
        before.standard[slot] = False
    for slot in plan.preempt_slots.tolist():
        free += int(before.kv_blocks[slot])
        before.preempted(slot)
    for slot in plan.decode_slots.tolist():
        free -= grow(before, slot, 1, LIMITS)
        before.tokens_out(slot, 1)
    for slot, chunk in zip(plan.prefill_slots.tolist(), plan.prefill_tokens.tolist(), strict=True):
        free -= grow(before, slot, chunk, LIMITS)
        before.prefilled(slot, chunk)
        if before.prefill_remaining[slot] == 0 and before.generated[slot] == 0:
            before.first_token(slot, end_s)
        elif before.prefill_remaining[slot] == 0:
            before.tokens_out(slot, 1)
    np.testing.assert_array_equal(got.ints, before.ints)
    np.testing.assert_allclose(got.floats, before.floats)
    np.testing.assert_array_equal(got.flags, before.flags)
    assert got_free == free
    assert [got.request_id(int(slot)) for slot in got.slots()] == [
        table.request_id(int(slot)) for slot in table.slots()
    ]


def test_free_blocks_never_go_below_none() -> None:
    table = table_of([(16, 0, 1, 1.0, 0.1, True)])
    plan = registry.get("slos").batching.plan(0.0, table, 5, MODEL, LIMITS)
    assert after_step(table, 0, plan, 0.1, 1)[1] == 0


def precision(foresees: bool, seed: int, rate_per_s: float) -> tuple[float, int]:
    """Share of promises kept, and promises made, when requests are decided on as they come, in the middle of steps."""
    limits = EngineLimits(2048, 256, 16, 4134, 8192)
    policy, work = registry.get("slos"), jobs(seed, 400, rate_per_s, OPT_13B)
    by_id = {job.request_id: job for job in work}
    table, free, at, now = RequestTable(8), limits.total_blocks, 0, 0.0
    while at < len(work) or len(table):
        if not len(table):
            now = max(now, work[at].arrival_s)
            end_s = now
        else:
            plan = policy.batching.plan(now, table, free, OPT_13B, limits)
            end_s = now + plan.predicted_s
            after = after_step(table, free, plan, end_s, limits.block_size)
        fresh = []
        while at < len(work) and work[at].arrival_s <= end_s:
            job, at = work[at], at + 1
            if foresees and len(table):
                seen = after[0].copy()
                for other in fresh:
                    add(seen, other, other.promised, 0.0)
                moment = (end_s, seen, after[1])
            else:
                moment = (max(job.arrival_s, now), with_all(table, fresh), free)
            decision = policy.admission.decide(*moment, OPT_13B, limits, [candidate(job)])
            job.promised = bool(decision.accepted)
            fresh.append(job)
        if len(table):
            produced = [int(s) for s in plan.decode_slots]
            produced += [int(s) for s in plan.prefill_slots if after[0].prefill_remaining[s] == 0]
            (table, free), now = after, end_s
            for slot in produced:
                request_id = table.request_id(slot)
                job = by_id[request_id]
                job.token_times_s.append(now)
                if len(job.token_times_s) == job.output_tokens:
                    free += int(table.kv_blocks[slot])
                    table.remove(request_id)
        for job in fresh:
            add(table, job, job.promised, 0.0)
    promised = [job for job in work if job.promised]
    return sum(job.score().attained for job in promised) / len(promised), len(promised)


def with_all(table: RequestTable, fresh: list[Job]) -> RequestTable:
    seen = table.copy()
    for job in fresh:
        add(seen, job, job.promised, 0.0)
    return seen


@pytest.mark.parametrize(("seed", "rate_per_s"), [(3, 2.0), (4, 2.0), (5, 1.0), (5, 3.0), (8, 3.0)])
def test_promises_made_in_the_middle_of_a_step_are_kept(seed: int, rate_per_s: float) -> None:
    kept, made = precision(True, seed, rate_per_s)
    assert made > 150
    assert kept >= 0.999


@pytest.mark.parametrize(("seed", "rate_per_s"), [(3, 2.0), (5, 1.0)])
def test_without_foresight_such_promises_break(seed: int, rate_per_s: float) -> None:
    """The test above would pass by itself if the step under way did not matter."""
    assert precision(False, seed, rate_per_s)[0] < 0.99
