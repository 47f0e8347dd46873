"""Admission by search over exactly simulated states: one set, greedy by deadline, or labels.

The state has one column for every promised resident and every candidate; a candidate outside the set has REM < 0.
`items` are the candidates in the order in which they are considered: those that decode already first, then the
prefills by deadline. Because prefills are served by deadline, a candidate changes nothing that happens before the
batch in which the last prefill ahead of it completes; there the simulation of a label goes on (its checkpoint).
"""

from __future__ import annotations

import numpy as np

from scheduling.kernels.jit import kernel
from scheduling.kernels.peak import peak_blocks, sustainable
from scheduling.kernels.rollout import FEASIBLE, NO_MEMORY, OVERLOAD, TOO_MANY, run_decodes, run_prefills
from scheduling.kernels.rows import ABSENT, REM, ROWS
from scheduling.request_table import BoolArray, FloatArray, IntArray


@kernel
def check_set(
    start: FloatArray,
    state: FloatArray,
    order: IntArray,
    head: int,
    now: float,
    rank: IntArray,
    lines: FloatArray,
    caps: FloatArray,
    max_tokens: float,
    max_requests: float,
    block_size: float,
    capacity_blocks: float,
    scratch: FloatArray,
    served: BoolArray,
    chunks: FloatArray,
    load: FloatArray,
) -> tuple[int, int, float, float]:
    """Is this set feasible? Returns (verdict, who binds, seconds from `now` until prefills are done, peak blocks).

    start: the set as it is before the first batch, by which memory and sustained decoding are judged. state, head,
    now: where its simulation begins, the same or a later checkpoint. Both are left as they are.
    """
    n = state.shape[1]
    count = 0
    for i in range(n):
        if start[REM, i] >= 0.0:
            count += 1
    if count > max_requests:
        return TOO_MANY, -1, 0.0, 0.0
    peak = peak_blocks(start, rank, block_size)
    if peak > capacity_blocks:
        return NO_MEMORY, -1, 0.0, peak
    if not sustainable(start, rank, lines, min(max_tokens, max_requests)):
        return OVERLOAD, -1, 0.0, peak
    scratch[:, :] = state
    m = len(order)
    verdict, time, head, bind = run_prefills(
        scratch, n, order, head, m, m, now, lines, caps, max_tokens, max_requests, served, chunks, load
    )
    if verdict != FEASIBLE:
        return verdict, bind, 0.0, peak
    done = time
    verdict, bind = run_decodes(scratch, n, time, lines, caps, max_tokens, max_requests, served, load)
    return verdict, bind, done - now, peak


@kernel
def greedy(
    start: FloatArray,
    order: IntArray,
    now: float,
    rank: IntArray,
    items: IntArray,
    item_rem: FloatArray,
    item_position: IntArray,
    chosen: BoolArray,
    lines: FloatArray,
    caps: FloatArray,
    max_tokens: float,
    max_requests: float,
    block_size: float,
    capacity_blocks: float,
) -> tuple[BoolArray, IntArray, IntArray]:
    """Add candidates in the order of `items` while feasible; returns (accepted, verdict, who binds) per item.

    chosen: a feasible set that is in from the beginning. `start` is left with the accepted set in it. An item changes
    nothing ahead of its place in the order: the simulation of the next one goes on from there.
    """
    n = start.shape[1]
    for k in range(len(items)):
        if chosen[k]:
            start[REM, items[k]] = item_rem[k]
    live = start.copy()
    clock = now
    head = 0
    scratch = np.empty((ROWS, n))
    served = np.zeros(n, np.bool_)
    chunks = np.zeros(len(order))
    load = np.empty(lines.shape[0])
    accepted = chosen.copy()
    verdicts = np.zeros(len(items), np.int64)
    binds = np.full(len(items), -1)
    for k in range(len(items)):
        if not chosen[k]:
            start[REM, items[k]] = item_rem[k]
            live[REM, items[k]] = item_rem[k]
            verdict, bind, _done, _peak = check_set(
                start, live, order, head, clock, rank, lines, caps, max_tokens, max_requests, block_size,
                capacity_blocks, scratch, served, chunks, load,
            )  # fmt: skip
            verdicts[k] = verdict
            binds[k] = bind
            accepted[k] = verdict == FEASIBLE
            if verdict != FEASIBLE:
                start[REM, items[k]] = ABSENT
                live[REM, items[k]] = ABSENT
        if accepted[k] and item_position[k] >= 0:
            _verdict, clock, head, _bind = run_prefills(
                live, n, order, head, len(order), item_position[k] + 1, clock, lines, caps, max_tokens, max_requests,
                served, chunks, load,
            )  # fmt: skip
    return accepted, verdicts, binds


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
    lines: FloatArray,
    caps: FloatArray,
    max_tokens: float,
    max_requests: float,
    block_size: float,
    capacity_blocks: float,
) -> tuple[BoolArray, float, int, bool]:
    """Most valuable feasible set that at most `max_labels` simulations find.

    A label is a feasible set with its value and its simulated checkpoint. Of labels that cannot all be kept, those go
    that another one beats in value, finishing time and memory alike (a heuristic dominance), then the least valuable.
    item_position: position of the item in `order`, -1 for one that decodes already.
    Returns (accepted per item, value, labels used, whether labels ran out).
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
    served = np.zeros(n, np.bool_)
    chunks = np.zeros(len(order))
    load = np.empty(lines.shape[0])
    states[0] = state
    clocks[0] = now
    labels = 1
    used = 0
    ran_out = False
    for k in range(count):
        stop = item_position[k]
        kept = labels
        for label in range(kept):
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
                block_size, capacity_blocks, scratch, served, chunks, load,
            )  # fmt: skip
            if verdict != FEASIBLE:
                continue
            values[child] = values[label] + item_value[k]
            dones[child] = clocks[child] + done
            peaks[child] = peak
            masks[child] = masks[label]
            masks[child, k] = True
            if stop >= 0:
                # Advance the checkpoint past everything that later items cannot change.
                verdict, clock, head, _bind = run_prefills(
                    states[child], n, order, heads[child], len(order), stop + 1, clocks[child], lines, caps,
                    max_tokens, max_requests, served, chunks, load,
                )  # fmt: skip
                heads[child] = head
                clocks[child] = clock
            labels += 1
        if labels > width:
            ran_out = True
            labels = _prune(labels, width, states, clocks, heads, values, dones, peaks, masks)
    best = 0
    for label in range(labels):
        if values[label] > values[best]:
            best = label
    return masks[best].copy(), values[best], used, ran_out


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
            states[at] = states[source]
            clocks[at] = clocks[source]
            heads[at] = heads[source]
            values[at] = values[source]
            dones[at] = dones[source]
            peaks[at] = peaks[source]
            masks[at] = masks[source]
    return width


@kernel
def all_at_once(
    state: FloatArray,
    order: IntArray,
    now: float,
    rank: IntArray,
    items: IntArray,
    item_rem: FloatArray,
    chosen: BoolArray,
    lines: FloatArray,
    caps: FloatArray,
    max_tokens: float,
    max_requests: float,
    block_size: float,
    capacity_blocks: float,
) -> tuple[int, int, float, float]:
    """Check the set of the chosen items; returns (verdict, who binds, seconds until prefills are done, peak blocks)."""
    n = state.shape[1]
    trial = state.copy()
    for k in range(len(items)):
        if chosen[k]:
            trial[REM, items[k]] = item_rem[k]
    return check_set(
        trial, trial, order, 0, now, rank, lines, caps, max_tokens, max_requests, block_size, capacity_blocks,
        np.empty((ROWS, n)), np.zeros(n, np.bool_), np.zeros(len(order)), np.empty(lines.shape[0]),
    )  # fmt: skip
