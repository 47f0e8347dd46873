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
def prefill_budget(horizon: float, tiers: FloatArray, counts: IntArray, lines: FloatArray, max_tokens: float) -> float:
    """PB*(t, n): prompt tokens that fit by `horizon` beside counts[l] decodes with TPOT tiers[l]; -1 when they do not.

    Every decode whose window has opened is served, earliest next deadline first; looser tiers skip batches.
    """
    levels = len(tiers)
    due = np.empty((levels, _GROUPS))
    size = np.zeros((levels, _GROUPS), np.int64)
    for level in range(levels):
        due[level, 0] = tiers[level]
        size[level, 0] = counts[level]
    clock = 0.0
    budget = 0.0
    while clock < horizon - _EPS:
        end = horizon
        for level in range(levels):
            for group in range(_GROUPS):
                if size[level, group] > 0:
                    end = min(end, due[level, group])
        if end <= clock + _EPS:
            return INFEASIBLE
        room = time_to_batch_size(end - clock, lines, max_tokens)
        owed = 0
        for level in range(levels):
            for group in range(_GROUPS):
                if size[level, group] > 0 and due[level, group] <= end + _EPS:
                    owed += size[level, group]
        if owed > room:
            return INFEASIBLE
        # Serve the open windows, earliest next deadline first.
        served_now = np.zeros((levels, _GROUPS), np.bool_)
        while room > 0:
            best_level, best_group = -1, -1
            for level in range(levels):
                for group in range(_GROUPS):
                    if size[level, group] == 0 or served_now[level, group]:
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
                served_now[best_level, best_group] = True
            else:
                size[best_level, best_group] -= taken
                placed = False
                for group in range(_GROUPS):
                    if size[best_level, group] == 0:
                        size[best_level, group] = taken
                        due[best_level, group] = target
                        placed = True
                        break
                if not placed:
                    return INFEASIBLE
                break
        _merge(due, size)
        budget += room
        clock = end
    return budget


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
def sustainable_counts(tiers: FloatArray, counts: IntArray, lines: FloatArray, max_tokens: float) -> bool:
    """Whether the decodes alone are feasible over a long horizon."""
    loosest = 0.0
    for level in range(len(tiers)):
        if counts[level] > 0:
            loosest = max(loosest, tiers[level])
    return loosest == 0.0 or prefill_budget(10.0 * loosest, tiers, counts, lines, max_tokens) >= 0.0
