"""PB*: prompt tokens that the planned batches can process by a time, after the decodes they owe (ALGORITHMS section 4).

Requests are counted per TPOT tier, all of them with their token window just opened, as in the paper. The engine is
reduced to lines of (seconds, seconds per token): the paper's time model has no context term.
"""

from __future__ import annotations

import math

import numpy as np

from scheduling.kernels.jit import kernel
from scheduling.kernels.steptime import CONST, PER_ATTENTION, PER_KV, PER_REQUEST, PER_TOKEN
from scheduling.request_table import FloatArray, IntArray

INFEASIBLE = -1.0
_EPS = 1e-9
_GROUPS = 4
"""Groups of one tier with different deadlines at most; more would need more decodes than batches can hold."""


@kernel
def token_lines(lines: FloatArray, kv: float, requests: float, prefill_context: float) -> FloatArray:
    """Lines of (constant, per token) for batches over this much decode KV and this mean context of prefill tokens."""
    reduced = np.empty((lines.shape[0], 2))
    for j in range(lines.shape[0]):
        reduced[j, 0] = lines[j, CONST] + lines[j, PER_KV] * kv + lines[j, PER_REQUEST] * requests
        reduced[j, 1] = lines[j, PER_TOKEN] + lines[j, PER_ATTENTION] * prefill_context
    return reduced


@kernel
def time_to_batch_size(time: float, lines: FloatArray, max_tokens: float) -> float:
    """Time2BS: most tokens of a batch that lasts at most this long."""
    best = max_tokens
    for j in range(lines.shape[0]):
        slack = time - lines[j, 0]
        if slack <= 0.0:
            return 0.0
        if lines[j, 1] > 0.0:
            best = min(best, math.floor(slack / lines[j, 1] + 1e-6))
    return best


@kernel
def most_windows(horizon: float, tiers: FloatArray) -> int:
    """Windows that a simulation up to `horizon` can have at most: every one ends with a deadline of some group."""
    windows = 8.0
    for level in range(len(tiers)):
        windows += _GROUPS * (horizon / tiers[level] + 1.0)
    return int(windows)


@kernel
def budget_windows(
    horizon: float,
    tiers: FloatArray,
    counts: IntArray,
    lines: FloatArray,
    max_tokens: float,
    ends: FloatArray,
    budgets: FloatArray,
    opened: FloatArray,
) -> int:
    """Simulate Algorithm 2 for counts[l] decodes with TPOT tiers[l], window by window, up to `horizon` or until late.

    Every decode whose token window has opened is served, earliest next deadline first; looser tiers skip batches.
    Fills the end of each window, the prompt tokens that fit by then, and how many decodes are open in it; returns how
    many windows succeed. The one after them has its end too: there a decode is late (infinite: not simulated).
    """
    levels = len(tiers)
    due = np.zeros((levels, _GROUPS))
    size = np.zeros((levels, _GROUPS), np.int64)
    served_in = np.full((levels, _GROUPS), -1)
    for level in range(levels):
        due[level, 0] = tiers[level]
        size[level, 0] = counts[level]
    clock = 0.0
    budget = 0.0
    for window in range(len(ends) - 1):
        opened[window] = 0.0
        ends[window] = np.inf
        if clock >= horizon - _EPS:
            return window
        end = np.inf
        for level in range(levels):
            for group in range(_GROUPS):
                if size[level, group] > 0:
                    end = min(end, due[level, group])
        if end <= clock + _EPS:
            ends[window] = clock
            return window
        ends[window] = end
        room = time_to_batch_size(end - clock, lines, max_tokens)
        owed = 0
        ready = 0
        for level in range(levels):
            for group in range(_GROUPS):
                if size[level, group] > 0:
                    if due[level, group] <= end + _EPS:
                        owed += size[level, group]
                    if due[level, group] - tiers[level] <= clock + _EPS:
                        ready += size[level, group]
        opened[window] = ready
        if owed > room:
            return window
        while room > 0:
            best_level, best_group = -1, -1
            for level in range(levels):
                for group in range(_GROUPS):
                    if size[level, group] == 0 or served_in[level, group] == window:
                        continue
                    if due[level, group] - tiers[level] > clock + _EPS:
                        continue
                    if best_level < 0 or due[level, group] < due[best_level, best_group]:
                        best_level, best_group = level, group
            if best_level < 0:
                break
            taken = min(size[best_level, best_group], int(room))
            room -= taken
            target = due[best_level, best_group] + tiers[best_level]
            if taken == size[best_level, best_group]:
                due[best_level, best_group] = target
                served_in[best_level, best_group] = window
                continue
            size[best_level, best_group] -= taken
            for group in range(_GROUPS):
                if size[best_level, group] == 0:
                    size[best_level, group] = taken
                    due[best_level, group] = target
                    taken = 0
                    break
            if taken > 0:
                ends[window] = clock
                return window
            break
        _merge(due, size)
        budget += room
        budgets[window] = budget
        clock = end
    return len(ends) - 1


@kernel
def budget_at(
    horizon: float,
    windows: int,
    ends: FloatArray,
    budgets: FloatArray,
    opened: FloatArray,
    lines: FloatArray,
    max_tokens: float,
) -> float:
    """PB*(horizon) from simulated windows that reach that far; -1 when a decode is late by then."""
    low, high = 0, windows
    while low < high:
        middle = (low + high) // 2
        if ends[middle] <= horizon + _EPS:
            low = middle + 1
        else:
            high = middle
    clock = ends[low - 1] if low > 0 else 0.0
    budget = budgets[low - 1] if low > 0 else 0.0
    if horizon <= clock + _EPS:
        return float(budget)
    if ends[low] <= horizon + _EPS:
        return INFEASIBLE
    # The last window is cut short: nothing is due in it, and what is open takes what there is.
    room = time_to_batch_size(horizon - clock, lines, max_tokens)
    return float(budget + max(0.0, room - opened[low]))


@kernel
def prefill_budget(horizon: float, tiers: FloatArray, counts: IntArray, lines: FloatArray, max_tokens: float) -> float:
    """PB*(t, n): prompt tokens that fit by `horizon` beside counts[l] decodes with TPOT tiers[l]; -1: they do not."""
    if horizon <= _EPS:
        return 0.0
    room = most_windows(horizon, tiers)
    ends, budgets, opened = np.empty(room), np.empty(room), np.empty(room)
    windows = budget_windows(horizon, tiers, counts, lines, max_tokens, ends, budgets, opened)
    return budget_at(horizon, windows, ends, budgets, opened, lines, max_tokens)


@kernel
def _merge(due: FloatArray, size: IntArray) -> None:
    """Join groups of a tier with the same deadline."""
    for level in range(due.shape[0]):
        for a in range(due.shape[1]):
            for b in range(a + 1, due.shape[1]):
                if size[level, a] > 0 and size[level, b] > 0 and abs(due[level, a] - due[level, b]) <= _EPS:
                    size[level, a] += size[level, b]
                    size[level, b] = 0


@kernel
def long_horizon(tiers: FloatArray, counts: IntArray) -> float:
    """Seconds over which decodes must be feasible by themselves to count as sustainable; 0 when nothing decodes."""
    loosest = 0.0
    for level in range(len(tiers)):
        if counts[level] > 0:
            loosest = max(loosest, tiers[level])
    return 10.0 * loosest


@kernel
def sustainable_counts(tiers: FloatArray, counts: IntArray, lines: FloatArray, max_tokens: float) -> bool:
    """Whether the decodes alone are feasible over a long horizon."""
    return prefill_budget(long_horizon(tiers, counts), tiers, counts, lines, max_tokens) >= 0.0
