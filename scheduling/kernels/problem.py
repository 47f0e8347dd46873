"""The state of an admission problem: one replica's promised residents and the newcomers, side by side."""

from __future__ import annotations

import numpy as np

from scheduling.kernels.jit import kernel
from scheduling.kernels.peak import by_remaining_output
from scheduling.kernels.promised import keep_promised
from scheduling.kernels.rows import ABSENT, REM, ROWS, prefill_order
from scheduling.request_table import ACTIVE, KV_BLOCKS, STANDARD, BoolArray, FloatArray, IntArray


@kernel
def set_up(
    ints: IntArray,
    floats: FloatArray,
    flags: BoolArray,
    used: int,
    now: float,
    bare: FloatArray,
    max_tokens: float,
    newcomers: FloatArray,
) -> tuple[IntArray, FloatArray, IntArray, IntArray, IntArray, FloatArray, IntArray, int, bool]:
    """Residents that can still be in time, and the newcomers (rows of `newcomers`, one column of the state each).

    Returns (slots of the residents, state with the newcomers absent, order of all prefills, all by remaining output,
    columns of the newcomers, their prompt tokens, their positions in the order or -1, blocks that the replica's
    requests hold, whether best-effort work is among them).
    """
    slots, kept, _missed = keep_promised(ints, floats, flags, used, now, bare, max_tokens, np.empty(bare.shape[0]))
    n, count = len(slots), newcomers.shape[0]
    state = np.empty((ROWS, n + count))
    state[:, :n] = kept
    for k in range(count):
        for row in range(ROWS):
            state[row, n + k] = newcomers[k, row]
    order, m = prefill_order(state, n + count, 0)
    position = np.full(n + count, -1)
    for at in range(m):
        position[order[at]] = at
    item_rem = state[REM, n:].copy()
    state[REM, n:] = ABSENT
    held = 0
    best_effort = False
    for slot in range(used):
        if flags[ACTIVE, slot]:
            held += ints[KV_BLOCKS, slot]
            best_effort = best_effort or not flags[STANDARD, slot]
    rank = by_remaining_output(state, n + count)
    return (
        slots,
        state,
        order[:m].copy(),
        rank,
        np.arange(n, n + count),
        item_rem,
        position[n:].copy(),
        held,
        best_effort,
    )
