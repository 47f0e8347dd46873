"""Admission by exactly simulated states: one set, or greedy by deadline (kernels.labels searches further).

The state has one column for every promised resident and every candidate; a candidate outside the set has REM < 0.
`items` are the candidates in the order in which they are considered: those that decode already first, then the
prefills by deadline. Because prefills are served by deadline, a candidate changes nothing that happens before the
batch in which the last prefill ahead of it completes; there its simulation goes on (the checkpoint).
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
        scratch, n, order, head, m, m, now, lines, caps, max_tokens, max_requests, chunks, load
    )
    if verdict != FEASIBLE:
        return verdict, bind, 0.0, peak
    done = time
    verdict, bind = run_decodes(scratch, n, time, lines, caps, max_tokens, max_requests, load)
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
                capacity_blocks, scratch, chunks, load,
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
                chunks, load,
            )  # fmt: skip
    return accepted, verdicts, binds


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
        np.empty((ROWS, n)), np.zeros(len(order)), np.empty(lines.shape[0]),
    )  # fmt: skip
