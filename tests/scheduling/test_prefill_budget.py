"""PB* against the paper's closed forms and against a request-by-request reference; the DP against all subsets."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scheduling.kernels.budget import prefill_budget, time_to_batch_size, token_lines
from scheduling.kernels.tierplan import chain_feasible, plan_tiers

SEVEN_B = np.array([[0.0248, 6.878e-5], [0.00303, 7.523e-5]])


def budget(horizon: float, tiers: list[float], counts: list[int], lines: np.ndarray = SEVEN_B) -> float:
    return prefill_budget(horizon, np.array(tiers), np.array(counts), lines, 1e9)


def test_one_tier_closed_form() -> None:
    assert time_to_batch_size(0.05, SEVEN_B, 1e9) == 366
    assert budget(0.5, [0.05], [30]) == 3360


def test_two_tiers_skip_batches() -> None:
    assert budget(1.0, [0.05, 0.1], [10, 10]) == 7020


def test_no_decodes_is_one_long_batch() -> None:
    assert budget(0.5, [0.05], [0]) == time_to_batch_size(0.5, SEVEN_B, 1e9)


def test_more_decodes_than_a_batch_holds_are_infeasible() -> None:
    assert budget(0.5, [0.05], [366]) == 0
    assert budget(0.5, [0.05], [367]) == -1


def test_context_and_request_terms_shrink_the_budget() -> None:
    full = np.array([[0.02, 1e-4, 1e-5, 1e-7, 1e-8, 0.0]])
    reduced = token_lines(full, 100_000.0, 50.0, 1000.0)
    assert reduced[0, 0] == pytest.approx(0.02 + 0.01 + 0.0005)
    assert reduced[0, 1] == pytest.approx(1e-4 + 1e-5)


def reference_budget(
    horizon: float, tiers: list[float], counts: list[int], constant: float, slope: float, cap: int
) -> float:
    """PB* as ALGORITHMS section 4 writes it, request by request."""
    eps = 1e-9
    due = [[tiers[level], tiers[level]] for level in range(len(tiers)) for _ in range(counts[level])]
    clock, total = 0.0, 0.0
    while clock < horizon - eps:
        end = min([horizon, *(d for d, _ in due)])
        if end <= clock + eps:
            return -1.0
        size = min(cap, int((end - clock - constant) / slope + 1e-6)) if end - clock > constant else 0
        waiting = sorted((r for r in due if r[0] - r[1] <= clock + eps), key=lambda r: r[0])
        if sum(r[0] <= end + eps for r in waiting) > size:
            return -1.0
        served = waiting[:size]
        for request in served:
            request[0] += request[1]
        total += size - len(served)
        clock = end
    return total


@settings(max_examples=400, deadline=None)
@given(
    st.lists(st.sampled_from([0.04, 0.05, 0.1, 0.15, 0.2]), min_size=1, max_size=4, unique=True),
    st.data(),
)
def test_budget_equals_reference(tiers: list[float], data: st.DataObject) -> None:
    tiers = sorted(tiers)
    counts = data.draw(st.lists(st.integers(0, 12), min_size=len(tiers), max_size=len(tiers)))
    horizon = data.draw(st.sampled_from([0.0, 0.03, 0.05, 0.1, 0.37, 0.8]))
    slope = data.draw(st.sampled_from([0.0005, 0.001, 0.002]))
    lines = np.array([[0.01, slope]])
    got = prefill_budget(horizon, np.array(tiers), np.array(counts), lines, 60.0)
    assert got == reference_budget(horizon, tiers, counts, 0.01, slope, 60)


items = st.tuples(
    st.integers(0, 8),  # deadline, tenths of a second
    st.integers(0, 250),  # tokens
    st.integers(1, 20),  # memory
    st.integers(1, 5),  # value
    st.integers(0, 2),  # tier
    st.booleans(),  # running
)


@settings(max_examples=600, deadline=None)
@given(
    st.lists(items, min_size=1, max_size=7),
    st.lists(st.integers(0, 10), min_size=3, max_size=3),
    st.integers(5, 80),
)
def test_dp_equals_best_subset(drawn: list[tuple[int, ...]], decoding: list[int], memory: int) -> None:
    drawn = sorted(drawn, key=lambda item: item[0])
    forced = np.array([bool(item[5]) and k % 3 == 0 for k, item in enumerate(drawn)])
    columns = np.array([item[:5] for item in drawn], dtype=np.float64).T
    problem = (columns[0] / 10, columns[1], columns[2])
    value, tier = np.where(forced, 0.0, columns[3]), columns[4].astype(np.int64)
    lines, tiers = np.array([[0.01, 0.0008]]), np.array([0.04, 0.05, 0.1])
    counts = np.array(decoding)
    best = None
    for bits in itertools.product([False, True], repeat=len(drawn)):
        chosen = np.array(bits)
        if (forced & ~chosen).any():
            continue
        if chain_feasible(chosen, *problem, tier, tiers, counts, float(memory), lines, 200.0):
            best = max(best or 0.0, float(value[chosen].sum()))
    accepted, worth, feasible = plan_tiers(
        *problem, value, tier, forced, tiers, counts, float(memory), lines, 200.0, -1.0
    )
    assert feasible == (best is not None)
    if best is not None:
        assert worth == best
        assert chain_feasible(accepted, *problem, tier, tiers, counts, float(memory), lines, 200.0)
        assert value[accepted].sum() == best
        if best > 0.0:
            # What cannot become better than `beat` is dropped on the way; what can is still found.
            full = (*problem, value, tier, forced, tiers, counts, float(memory), lines, 200.0)
            assert plan_tiers(*full, best - 0.5)[1] == best
            assert plan_tiers(*full, best)[1] <= best
