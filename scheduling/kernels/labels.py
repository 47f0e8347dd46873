"""Admission by label search over exactly simulated states: which feasible set is worth most."""

from __future__ import annotations

import numpy as np

from scheduling.kernels.jit import kernel
from scheduling.kernels.rollout import FEASIBLE, run_prefills
from scheduling.kernels.rows import EPS, REM, ROWS
from scheduling.kernels.search import check_set
from scheduling.request_table import BoolArray, FloatArray, IntArray


@kernel
def label_search(
    state: FloatArray,
    order: IntArray,
    now: float,
    rank: IntArray,
    items: IntArray,
    item_rem: FloatArray,
    item_value: FloatArray,
    item_position: IntArray,
    max_labels: int,
    beat: float,
    lines: FloatArray,
    caps: FloatArray,
    max_tokens: float,
    max_requests: float,
    block_size: float,
    capacity_blocks: float,
) -> tuple[BoolArray, float, int, bool]:
    """Most valuable feasible set that at most `max_labels` simulations find, among those worth more than `beat`.

    A label is a feasible set with its value and its simulated checkpoint. Labels that cannot become worth more than
    `beat`, or than the best one so far, are dropped at once; an item that would not fit into a smaller set is not tried
    again with a larger one. Of labels that cannot all be kept, those go that another one beats in value, finishing time
    and memory alike (a heuristic dominance), then the least valuable.
    item_position: position of the item in `order`, -1 for one that decodes already.
    Returns (accepted per item, value, labels used, whether labels ran out); nobody and `beat` (at least 0) when no set
    is better.
    """
    n = state.shape[1]
    count = len(items)
    width = max(2, max_labels // max(count, 1))
    states = np.empty((2 * width, ROWS, n))
    clocks = np.empty(2 * width)
    heads = np.zeros(2 * width, np.int64)
    values = np.zeros(2 * width)
    dones = np.zeros(2 * width)
    peaks = np.zeros(2 * width)
    masks = np.zeros((2 * width, count), np.bool_)
    start = np.empty((ROWS, n))
    scratch = np.empty((ROWS, n))
    chunks = np.zeros(len(order))
    load = np.empty(lines.shape[0])
    to_come = np.zeros(count + 1)
    for k in range(count - 1, -1, -1):
        to_come[k] = to_come[k + 1] + item_value[k]
    best = np.zeros(count, np.bool_)
    refused = np.zeros((width, count), np.bool_)
    beat = max(beat, 0.0)
    states[0] = state
    clocks[0] = now
    labels = 1
    used = 0
    ran_out = False
    for k in range(count):
        stop = item_position[k]
        labels = _keep_promising(labels, to_come[k], beat, states, clocks, heads, values, dones, peaks, masks)
        kept = labels
        refusals = 0
        for label in range(kept):
            if _holds_one(masks[label], refused, refusals):
                continue
            if used >= max_labels:
                ran_out = True
                break
            used += 1
            child = labels
            states[child] = states[label]
            states[child, REM, items[k]] = item_rem[k]
            heads[child] = heads[label]
            clocks[child] = clocks[label]
            start[:, :] = state
            for other in range(k):
                if masks[label, other]:
                    start[REM, items[other]] = item_rem[other]
            start[REM, items[k]] = item_rem[k]
            verdict, _bind, done, peak = check_set(
                start, states[child], order, heads[child], clocks[child], rank, lines, caps, max_tokens, max_requests,
                block_size, capacity_blocks, scratch, chunks, load,
            )  # fmt: skip
            if verdict != FEASIBLE:
                refused[refusals] = masks[label]
                refusals += 1
                continue
            values[child] = values[label] + item_value[k]
            dones[child] = clocks[child] + done
            peaks[child] = peak
            masks[child] = masks[label]
            masks[child, k] = True
            if values[child] > beat + EPS:
                beat = values[child]
                best[:] = masks[child]
            if stop >= 0 and values[child] + to_come[k + 1] > beat + EPS:
                # Advance the checkpoint past everything that later items cannot change.
                verdict, clock, head, _bind = run_prefills(
                    states[child], n, order, heads[child], len(order), stop + 1, clocks[child], lines, caps,
                    max_tokens, max_requests, chunks, load,
                )  # fmt: skip
                heads[child] = head
                clocks[child] = clock
            labels += 1
        if labels > width:
            labels = _keep_promising(labels, to_come[k + 1], beat, states, clocks, heads, values, dones, peaks, masks)
        if labels > width:
            ran_out = True
            labels = _prune(labels, width, states, clocks, heads, values, dones, peaks, masks)
    return best, beat, used, ran_out


@kernel
def _holds_one(mask: BoolArray, sets: BoolArray, count: int) -> bool:
    """Whether the set holds all items of one of the first `count` sets."""
    for s in range(count):
        holds = True
        for k in range(len(mask)):
            if sets[s, k] and not mask[k]:
                holds = False
                break
        if holds:
            return True
    return False


@kernel
def _keep_promising(
    labels: int,
    to_come: float,
    beat: float,
    states: FloatArray,
    clocks: FloatArray,
    heads: IntArray,
    values: FloatArray,
    dones: FloatArray,
    peaks: FloatArray,
    masks: BoolArray,
) -> int:
    """Drop the labels that cannot become worth more than `beat`; returns how many are left."""
    at = 0
    for label in range(labels):
        if values[label] + to_come > beat + EPS:
            if label != at:
                _move(label, at, states, clocks, heads, values, dones, peaks, masks)
            at += 1
    return at


@kernel
def _move(
    source: int,
    at: int,
    states: FloatArray,
    clocks: FloatArray,
    heads: IntArray,
    values: FloatArray,
    dones: FloatArray,
    peaks: FloatArray,
    masks: BoolArray,
) -> None:
    states[at] = states[source]
    clocks[at] = clocks[source]
    heads[at] = heads[source]
    values[at] = values[source]
    dones[at] = dones[source]
    peaks[at] = peaks[source]
    masks[at] = masks[source]


@kernel
def _prune(
    labels: int,
    width: int,
    states: FloatArray,
    clocks: FloatArray,
    heads: IntArray,
    values: FloatArray,
    dones: FloatArray,
    peaks: FloatArray,
    masks: BoolArray,
) -> int:
    """Keep `width` labels: the undominated ones by value, then the others by value; returns how many are kept."""
    dominated = np.zeros(labels)
    for a in range(labels):
        for b in range(labels):
            if a != b and values[b] >= values[a] and dones[b] <= dones[a] and peaks[b] <= peaks[a]:
                strictly = values[b] > values[a] or dones[b] < dones[a] or peaks[b] < peaks[a]
                if strictly or b < a:
                    dominated[a] = 1.0
                    break
    span = 1.0
    for a in range(labels):
        span += values[a]
    rank = np.argsort(dominated * span - values[:labels])
    keep = np.sort(rank[:width])
    for at in range(width):
        source = keep[at]
        if source != at:
            _move(source, at, states, clocks, heads, values, dones, peaks, masks)
    return width
