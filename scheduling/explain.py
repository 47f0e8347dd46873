"""The numbers of an admission plan, JSON-able, for `slosctl explain`: budget and demand lines, memory, who binds."""

from __future__ import annotations

import numpy as np

from scheduling.admission import Problem
from scheduling.kernels.rows import DUE, EPS, PACE, REM
from scheduling.kernels.trace import trace_batches
from scheduling.request_table import BoolArray, FloatArray

MAX_BATCHES = 60
MAX_POINTS = 120
MIN_HORIZON_S = 0.5


def plan_lines(problem: Problem, chosen: BoolArray) -> dict[str, list[float]]:
    """Budget and demand of the plan with the chosen newcomers, over time from now (the paper's picture, section 2).

    "time_s", "budget_tokens" (what the simulated batches supply by then) and "demand_tokens" (what deadlines require
    by then), equally long and cumulative. Up to half a second past the last prefill deadline; at most 60 batches.
    """
    state = problem.state.copy()
    state[REM, problem.items[chosen]] = problem.item_rem[chosen]
    present = state[REM] >= 0
    prefills = state[REM] > 0
    last_due = float(state[DUE, prefills].max()) - problem.now_s if prefills.any() else 0.0
    horizon_s = max(last_due, 0.0) + MIN_HORIZON_S
    limits = problem.limits
    ends, supply = trace_batches(
        state,
        problem.order,
        problem.now_s,
        problem.now_s + horizon_s,
        problem.lines,
        problem.caps,
        float(limits.max_batch_tokens),
        float(limits.max_batch_requests),
        MAX_BATCHES,
    )
    ends = ends - problem.now_s
    dues, tokens = _demand(state[:, present], problem.now_s, float(ends[-1]) if len(ends) else horizon_s)
    times = np.unique(np.concatenate([[0.0], ends, dues]))
    if len(times) > MAX_POINTS:
        times = times[np.linspace(0, len(times) - 1, MAX_POINTS).astype(np.int64)]
    # As in the plan itself, a batch that ends on a deadline but for rounding is in time.
    budget = np.concatenate([[0.0], supply])[np.searchsorted(ends, times + EPS, side="right")]
    order = np.argsort(dues, kind="stable")
    demand = np.concatenate([[0.0], np.cumsum(tokens[order])])[np.searchsorted(dues[order], times, side="right")]
    return {
        "time_s": [round(float(t), 6) for t in times],
        "budget_tokens": [float(b) for b in budget],
        "demand_tokens": [float(d) for d in demand],
    }


def _demand(state: FloatArray, now_s: float, horizon_s: float) -> tuple[FloatArray, FloatArray]:
    """When tokens are due, from now, and how many: prompts at their deadline, then output tokens one by one."""
    dues: list[float] = []
    tokens: list[float] = []
    for i in range(state.shape[1]):
        due_s = max(float(state[DUE, i]) - now_s, 0.0)
        if state[REM, i] > 0:
            dues.append(due_s)
            tokens.append(float(state[REM, i]))
            due_s += float(state[PACE, i])
        while due_s <= horizon_s:
            dues.append(due_s)
            tokens.append(1.0)
            due_s += float(state[PACE, i])
    return np.array(dues), np.array(tokens)
