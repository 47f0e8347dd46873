"""Algorithm 1 of the paper: multi-SLO dynamic programming over tier counts (ALGORITHMS section 3), and its greedy kin.

Items are running and new prefills in deadline order. A label is (last accepted item, memory, surplus prefill budget,
accepted counts per tier, value); running items may not be skipped. All labels live in arrays.
"""

from __future__ import annotations

import numpy as np

from scheduling.kernels.budget import prefill_budget, sustainable_counts
from scheduling.kernels.jit import kernel
from scheduling.request_table import BoolArray, FloatArray, IntArray

MAX_LABELS = 2048


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
) -> tuple[BoolArray, float, bool]:
    """Most valuable subset with every running item; returns (accepted per item, value, whether one exists).

    deadline: seconds from now, ascending; decoding: running decodes per tier; memory: blocks still to be reserved.
    """
    items, levels = len(deadline), len(tiers)
    last = np.empty(MAX_LABELS)
    used = np.zeros(MAX_LABELS)
    surplus = np.zeros(MAX_LABELS)
    worth = np.zeros(MAX_LABELS)
    counts = np.zeros((MAX_LABELS, levels), np.int64)
    masks = np.zeros((MAX_LABELS, items), np.bool_)
    last[0] = 0.0
    counts[0] = decoding
    labels = 1
    nobody = np.zeros(items, np.bool_)
    if not sustainable_counts(tiers, decoding, lines, max_tokens):
        return nobody, 0.0, False
    for i in range(items):
        before = labels
        for j in range(before):
            if labels == MAX_LABELS:
                break
            memory_after = used[j] + memory[i]
            if memory_after > free_memory:
                continue
            # PB* depends on the last deadline and the counts alone: labels that share both stand together.
            budget = prefill_budget(deadline[i] - last[j], tiers, counts[j], lines, max_tokens)
            if budget < 0.0 or surplus[j] + budget < tokens[i]:
                continue
            new = labels
            counts[new] = counts[j]
            counts[new, tier[i]] += 1
            if not sustainable_counts(tiers, counts[new], lines, max_tokens):
                continue
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
