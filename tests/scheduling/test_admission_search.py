"""Admission against brute force: every admitted set is feasible, and `slos` is (nearly always) the best subset."""

from __future__ import annotations

import itertools

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from scheduling import registry
from scheduling.admission import Problem, build
from scheduling.batch_settings import DEFAULT_SETTINGS
from scheduling.headroom import NO_HEADROOM
from scheduling.kernels.rollout import FEASIBLE
from scheduling.newcomers import newcomers_of
from scheduling.request_table import RequestTable
from scheduling.time_model import TimeModel
from scheduling.types import AdmissionDecision, Candidate, EngineLimits, Slo
from tests.scheduling import reference

MODEL = TimeModel(((0.02348, 1.405e-4, -7.98e-5, 5.93e-7, 1.616e-8, 0.0),))
LIMITS = EngineLimits(2048, 24, 16, 700, 4096)
SLOS, EDF = (registry.get(name, headroom=NO_HEADROOM).admission for name in ("slos", "edf-exact"))
"""The searches alone: what is kept for requests to come is tested in test_headroom."""
DP = registry.get("dp").admission


def small_case(rng: np.random.Generator) -> tuple[RequestTable, int, list[Candidate]]:
    """Build a replica with a few residents, and a handful of newcomers of different worth."""
    table = RequestTable(4)
    free = int(rng.integers(100, LIMITS.total_blocks))
    for k in range(rng.integers(0, 8)):
        prompt, generated = int(rng.integers(10, 800)), int(rng.integers(1, 50))
        table.add(
            f"decode{k}",
            prompt_tokens=prompt,
            generated=generated,
            context=prompt + generated - 1,
            prefill_deadline_s=-1.0,
            next_deadline_s=float(0.05 + 0.1 * rng.random()),
            tpot_s=float(rng.choice([0.05, 0.1])),
            remaining_output=int(rng.integers(1, 200)),
            kv_blocks=-(-(prompt + generated - 1) // LIMITS.block_size),
        )
    for k in range(rng.integers(0, 3)):
        table.add(
            f"prefill{k}",
            prompt_tokens=int(rng.integers(10, 900)),
            prefill_deadline_s=float(0.1 + rng.random()),
            tpot_s=float(rng.choice([0.05, 0.1])),
            remaining_output=int(rng.integers(1, 200)),
        )
    candidates = [
        Candidate(
            f"new{k}",
            0.0,
            int(rng.integers(10, 1500)),
            Slo(float(0.08 + 1.2 * rng.random()), float(rng.choice([0.05, 0.1]))),
            int(rng.integers(1, 300)),
            400,
            value=float(rng.choice([1.0, 1.0, 2.0, 5.0])),
        )
        for k in range(rng.integers(1, 8))
    ]
    return table, free, candidates


def problem_of(table: RequestTable, free: int, candidates: list[Candidate]) -> Problem:
    newcomers, _ = newcomers_of(candidates, table, LIMITS)
    return build(0.0, table, free, MODEL, LIMITS, newcomers, DEFAULT_SETTINGS)


def worth(problem: Problem, decision: AdmissionDecision) -> tuple[float, bool]:
    """Return value of an admitted set and whether the oracle holds it feasible."""
    chosen = np.array([new.request_id in decision.accepted for new in problem.newcomers])
    return float(problem.item_value[chosen].sum()), problem.feasible(chosen)


def best_subset(problem: Problem) -> float:
    best = -1.0
    for bits in itertools.product([False, True], repeat=len(problem.items)):
        chosen = np.array(bits)
        value = float(problem.item_value[chosen].sum())
        if value > best and problem.feasible(chosen):
            best = value
    return best


def test_slos_against_every_subset() -> None:
    rng = np.random.default_rng(7)
    cases, equal, undecided = 2000, 0, 0
    for _ in range(cases):
        table, free, candidates = small_case(rng)
        problem = problem_of(table, free, candidates)
        decision = SLOS.decide(0.0, table, free, MODEL, LIMITS, candidates)
        value, feasible = worth(problem, decision)
        best = best_subset(problem)
        if best < 0:
            # The residents alone are infeasible: nobody is promised anything.
            assert not decision.accepted
            undecided += 1
            continue
        assert feasible
        assert value <= best + 1e-9
        for policy in (EDF, DP):
            other, holds = worth(problem, policy.decide(0.0, table, free, MODEL, LIMITS, candidates))
            assert not holds or value >= other - 1e-9
        equal += value >= best - 1e-9
        assert set(decision.accepted) | set(decision.declined) == {c.request_id for c in candidates}
        assert not set(decision.accepted) & set(decision.declined)
    assert undecided < cases / 4
    assert equal >= 0.95 * (cases - undecided), f"the best subset in {equal} of {cases - undecided} cases"


@settings(max_examples=300, deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_admitted_sets_are_feasible_in_the_plain_simulation(seed: int) -> None:
    table, free, candidates = small_case(np.random.default_rng(seed))
    problem = problem_of(table, free, candidates)
    for policy in (SLOS, EDF):
        decision = policy.decide(0.0, table, free, MODEL, LIMITS, candidates)
        chosen = np.array([new.request_id in decision.accepted for new in problem.newcomers])
        if not chosen.any():
            continue
        state = problem.state.copy()
        state[0, problem.items[chosen]] = problem.item_rem[chosen]
        present = [
            reference.Req(int(rem), float(due), float(pace), int(ctx), int(out))
            for rem, due, pace, ctx, out in state.T
            if rem >= 0
        ]
        idle, paces, longest, shortest, _ = (float(cap) for cap in problem.caps)
        rules = reference.Rules(
            MODEL, LIMITS.max_batch_tokens, LIMITS.max_batch_requests, idle, paces, longest, shortest
        )
        assert reference.feasible(present, 0.0, rules)
        assert reference.sustainable(present, rules)
        assert reference.peak_blocks(present, LIMITS.block_size) <= problem.capacity_blocks + 1e-9
        assert len(present) <= LIMITS.max_batch_requests


def test_label_search_is_no_worse_with_more_labels() -> None:
    rng = np.random.default_rng(3)
    for _ in range(100):
        table, free, candidates = small_case(rng)
        problem = problem_of(table, free, candidates)
        if problem.check(np.zeros(len(problem.items), dtype=np.bool_))[0] != FEASIBLE:
            continue
        unlimited = problem.label_search(1 << 14)[1]
        assert unlimited >= problem.label_search(16)[1]
        assert unlimited == best_subset(problem)


def test_promotion_takes_the_resident_as_it_stands() -> None:
    table = RequestTable()
    table.add("waits", prompt_tokens=500, prefill_deadline_s=0.5, tpot_s=0.1, standard=False)
    table.add(
        "decodes", prompt_tokens=500, generated=3, context=502, prefill_deadline_s=0.0, next_deadline_s=0.2, tpot_s=0.1,
        standard=False, kv_blocks=32,
    )  # fmt: skip
    candidates = [Candidate(name, 0.0, 500, Slo(9.0, 9.0), 10, 10) for name in ("waits", "decodes")]
    assert set(SLOS.decide(0.0, table, 600, MODEL, LIMITS, candidates).accepted) == {"waits", "decodes"}
    # Half a second later both are late, whatever their SLO fields say.
    assert SLOS.decide(0.48, table, 600, MODEL, LIMITS, candidates).accepted == ()
