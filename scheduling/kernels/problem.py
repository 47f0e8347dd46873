"""One replica's admission problem: promised residents and newcomers side by side, and whether all of them fit."""

from __future__ import annotations

import numpy as np

from scheduling.kernels.jit import kernel
from scheduling.kernels.peak import by_remaining_output
from scheduling.kernels.promised import keep_promised
from scheduling.kernels.rows import ABSENT, PACE, REM, ROWS, prefill_order
from scheduling.kernels.search import check_set
from scheduling.kernels.speculation import count_on
from scheduling.kernels.step import batch_caps
from scheduling.request_table import (
    ACCEPT_RATE,
    ACTIVE,
    DRAFT_SHARE,
    HOPEFUL,
    KV_BLOCKS,
    STANDARD,
    BoolArray,
    FloatArray,
    IntArray,
)


@kernel
def set_up(
    ints: IntArray,
    floats: FloatArray,
    flags: BoolArray,
    used: int,
    now: float,
    free_blocks: int,
    model: FloatArray,
    margin: float,
    settings: FloatArray,
    floor: float,
    beside_hopeful: bool,
    max_tokens: float,
    max_requests: float,
    block_size: float,
    max_spec: int,
    newcomers: FloatArray,
) -> tuple[
    IntArray, FloatArray, IntArray, IntArray, IntArray, FloatArray, IntArray, FloatArray, FloatArray, float,
    tuple[int, int, float, float],
]:  # fmt: skip
    """Residents that can still be in time, and the newcomers (rows of `newcomers`, one column of the state each).

    model: lines of the time model, with the margin in them. floor: share of the time that is left to best-effort work
    while there is any. beside_hopeful: hopeful residents are kept too.

    Returns (slots of the residents, state with the newcomers absent, order of all prefills, all by remaining output,
    columns of the newcomers, their prompt tokens, their positions in the order or -1, lines and caps of the plan,
    blocks that it may use, and what check_set says of everybody together).
    """
    if beside_hopeful:
        flags = flags.copy()
        flags[STANDARD] |= flags[HOPEFUL]
    load = np.empty(model.shape[0])
    slots, kept, _missed = keep_promised(ints, floats, flags, used, now, model / margin, max_tokens, load)
    n, count = len(slots), newcomers.shape[0]
    state = np.empty((ROWS, n + count))
    state[:, :n] = kept
    for k in range(count):
        for row in range(ROWS):
            state[row, n + k] = newcomers[k, row]
    order, m = prefill_order(state, n + count, 0)
    order = order[:m].copy()
    position = np.full(n + count, -1)
    for at in range(m):
        position[order[at]] = at
    capacity = free_blocks
    best_effort = False
    for slot in range(used):
        if flags[ACTIVE, slot]:
            capacity += ints[KV_BLOCKS, slot]
            best_effort = best_effort or not flags[STANDARD, slot]
    rank = by_remaining_output(state, n + count)
    lines = model / (1.0 - floor) if best_effort else model.copy()
    caps = batch_caps(lines, settings)
    if max_spec > 1:
        lines = counted_on(slots, state, floats, lines, caps, max_spec)
    item_rem = state[REM, n:].copy()
    everybody = check_set(
        state, state, order, 0, now, rank, lines, caps, max_tokens, max_requests, block_size, float(capacity),
        np.empty((ROWS, n + count)), np.zeros(m), load,
    )  # fmt: skip
    state[REM, n:] = ABSENT
    return (
        slots, state, order, rank, np.arange(n, n + count), item_rem, position[n:].copy(), lines, caps, float(capacity),
        everybody,
    )  # fmt: skip


@kernel
def counted_on(
    slots: IntArray, state: FloatArray, floats: FloatArray, lines: FloatArray, caps: FloatArray, max_spec: int
) -> FloatArray:
    """Lines of steps that speculate; the state's paces become those of such steps.

    Newcomers, the columns past the residents', get the means of the residents' acceptance and share of drafts.
    """
    n, everybody = len(slots), state.shape[1]
    accept_rate, share = np.zeros(everybody), np.ones(everybody)
    for i in range(n):
        accept_rate[i] = floats[ACCEPT_RATE, slots[i]]
        share[i] = floats[DRAFT_SHARE, slots[i]]
    if n == 0 or not accept_rate.any():
        return lines
    accept_rate[n:] = accept_rate[:n].mean()
    share[n:] = share[:n].mean()
    together = state.copy()
    spec = np.ones(everybody, np.int64)
    now = np.ones(everybody, np.bool_)
    ahead = count_on(together, everybody, accept_rate, share, now, lines, caps.copy(), max_spec, spec)
    state[PACE] = together[PACE]
    return ahead
