"""Algorithm 1 of the paper: multi-SLO dynamic programming over tier counts (ALGORITHMS section 3), and its greedy kin.

Items are running and new prefills in deadline order. A label is (last accepted item, memory, surplus prefill budget,
accepted counts per tier, value); running items may not be skipped. All labels live in arrays.
"""

from __future__ import annotations

import numpy as np

from scheduling.kernels.budget import (
    budget_at,
    budget_windows,
    long_horizon,
    most_windows,
    prefill_budget,
    sustainable_counts,
)
from scheduling.kernels.jit import kernel
from scheduling.request_table import BoolArray, FloatArray, IntArray

MAX_LABELS = 2048
WINDOW_ROOM = 1 << 20
"""Windows of PB* kept at about most: with very unequal tiers fewer counts are tried."""


@kernel
def plan_tiers(
    deadline: FloatArray,
    tokens: FloatArray,
    memory: FloatArray,
    value: FloatArray,
    tier: IntArray,
    forced: BoolArray,
    tiers: FloatArray,
    decoding: IntArray,
    free_memory: float,
    lines: FloatArray,
    max_tokens: float,
    beat: float,
) -> tuple[BoolArray, float, bool]:
    """Most valuable subset with every running item; returns (accepted per item, value, whether one exists).

    deadline: seconds from now, ascending; decoding: running decodes per tier; memory: blocks still to be reserved;
    beat: labels that cannot become worth more than this are dropped (negative: none).
    """
    items, levels = len(deadline), len(tiers)
    last = np.empty(MAX_LABELS)
    used = np.zeros(MAX_LABELS)
    surplus = np.zeros(MAX_LABELS)
    worth = np.zeros(MAX_LABELS)
    counts = np.zeros((MAX_LABELS, levels), np.int64)
    windows_of = np.zeros(MAX_LABELS, np.int64)
    masks = np.zeros((MAX_LABELS, items), np.bool_)
    last[0] = 0.0
    counts[0] = decoding
    labels = 1
    nobody = np.zeros(items, np.bool_)
    to_come = np.zeros(items + 1)
    for i in range(items - 1, -1, -1):
        to_come[i] = to_come[i + 1] + value[i]
    # PB* depends on the counts but for where it is read: the windows of each counts are simulated once.
    furthest = 10.0 * tiers.max() if len(tiers) > 0 else 0.0
    furthest = max(furthest, deadline[items - 1]) if items > 0 else furthest
    room = most_windows(furthest, tiers)
    places = min(MAX_LABELS, max(64, WINDOW_ROOM // room))
    known = np.empty((places, levels), np.int64)
    windows = np.empty(places, np.int64)
    ends, budgets, opened = np.empty((places, room)), np.empty((places, room)), np.empty((places, room))
    windows[0] = budget_windows(furthest, tiers, decoding, lines, max_tokens, ends[0], budgets[0], opened[0])
    known[0] = decoding
    simulated = 1
    lasting = long_horizon(tiers, decoding)
    if budget_at(lasting, windows[0], ends[0], budgets[0], opened[0], lines, max_tokens) < 0.0:
        return nobody, 0.0, False
    for i in range(items):
        before = labels
        for j in range(before):
            if labels == MAX_LABELS:
                break
            memory_after = used[j] + memory[i]
            if memory_after > free_memory or worth[j] + to_come[i] <= beat:
                continue
            at = windows_of[j]
            budget = budget_at(deadline[i] - last[j], windows[at], ends[at], budgets[at], opened[at], lines, max_tokens)
            if budget < 0.0 or surplus[j] + budget < tokens[i]:
                continue
            new = labels
            counts[new] = counts[j]
            counts[new, tier[i]] += 1
            at = _find(counts[new], known, simulated)
            if at == simulated:
                if at == places:
                    continue
                simulated += 1
                known[at] = counts[new]
                windows[at] = budget_windows(
                    furthest, tiers, counts[new], lines, max_tokens, ends[at], budgets[at], opened[at]
                )
            lasting = long_horizon(tiers, counts[new])
            if budget_at(lasting, windows[at], ends[at], budgets[at], opened[at], lines, max_tokens) < 0.0:
                continue
            windows_of[new] = at
            last[new] = deadline[i]
            used[new] = memory_after
            surplus[new] = surplus[j] + budget - tokens[i]
            worth[new] = worth[j] + value[i]
            masks[new] = masks[j]
            masks[new, i] = True
            at = _place(new, before, used, surplus, worth, counts)
            if at == new:
                labels += 1
            elif at >= 0:
                used[at], surplus[at], worth[at] = used[new], surplus[new], worth[new]
                masks[at] = masks[new]
        if forced[i]:
            kept = labels - before
            for k in range(kept):
                source = before + k
                last[k], used[k], surplus[k], worth[k] = last[source], used[source], surplus[source], worth[source]
                counts[k] = counts[source]
                windows_of[k] = windows_of[source]
                masks[k] = masks[source]
            labels = kept
            if labels == 0:
                return nobody, 0.0, False
    best = 0
    for j in range(labels):
        if worth[j] > worth[best]:
            best = j
    return masks[best].copy(), worth[best], True


@kernel
def _find(counts: IntArray, known: IntArray, n: int) -> int:
    """Where these counts are among the known ones; n when they are not."""
    for at in range(n):
        same = True
        for level in range(len(counts)):
            if known[at, level] != counts[level]:
                same = False
                break
        if same:
            return at
    return n


@kernel
def _place(new: int, first: int, used: FloatArray, surplus: FloatArray, worth: FloatArray, counts: IntArray) -> int:
    """Where a new label goes: its own place, that of one it dominates, or nowhere (-1) when it is dominated.

    Only labels with the same last item (from `first` on) and the same counts are compared.
    """
    for j in range(first, new):
        same = True
        for level in range(counts.shape[1]):
            if counts[j, level] != counts[new, level]:
                same = False
                break
        if not same:
            continue
        if worth[j] >= worth[new] and used[j] <= used[new] and surplus[j] >= surplus[new]:
            return -1
        if worth[new] >= worth[j] and used[new] <= used[j] and surplus[new] >= surplus[j]:
            return j
    return new


@kernel
def chain_feasible(
    chosen: BoolArray,
    deadline: FloatArray,
    tokens: FloatArray,
    memory: FloatArray,
    tier: IntArray,
    tiers: FloatArray,
    decoding: IntArray,
    free_memory: float,
    lines: FloatArray,
    max_tokens: float,
) -> bool:
    """Whether one set is feasible under the same chained PB*."""
    counts = decoding.copy()
    clock, surplus, used = 0.0, 0.0, 0.0
    if not sustainable_counts(tiers, counts, lines, max_tokens):
        return False
    for i in range(len(deadline)):
        if not chosen[i]:
            continue
        used += memory[i]
        budget = prefill_budget(deadline[i] - clock, tiers, counts, lines, max_tokens)
        if used > free_memory or budget < 0.0 or surplus + budget < tokens[i]:
            return False
        surplus += budget - tokens[i]
        counts[tier[i]] += 1
        if not sustainable_counts(tiers, counts, lines, max_tokens):
            return False
        clock = deadline[i]
    return True
