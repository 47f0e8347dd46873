"""The decodes of a planning state side by side, so that a simulated batch costs a few passes over plain numbers.

`live` is an array of shape (LIVE_ROWS, n), one column per decode, and `who` says which column of the state it is.
Simulations of many batches run on it and write it back once.
"""

from __future__ import annotations

import numpy as np

from scheduling.kernels.jit import kernel, reduction
from scheduling.kernels.rows import CTX, DUE, OUT, PACE, REM
from scheduling.request_table import FloatArray, IntArray

NEXT, STEP, READ, LEFT, TAKEN = 0, 1, 2, 3, 4
"""When the next token is due, TPOT, KV tokens read, output tokens to come, and 1 for those that the batch serves."""
LIVE_ROWS = 5


@kernel
def gather_decodes(state: FloatArray, n: int, live: FloatArray, who: IntArray) -> int:
    """Fill live and who from the state; returns how many decode."""
    count = 0
    for i in range(n):
        if state[REM, i] == 0.0:
            count = add_decode_of(state, i, live, who, count)
    return count


@kernel
def add_decode_of(state: FloatArray, i: int, live: FloatArray, who: IntArray, count: int) -> int:
    """Append one request of the state; returns how many decode."""
    live[NEXT, count] = state[DUE, i]
    live[STEP, count] = state[PACE, i]
    live[READ, count] = state[CTX, i]
    live[LEFT, count] = state[OUT, i]
    who[count] = i
    return count + 1


@kernel
def write_decodes(state: FloatArray, live: FloatArray, who: IntArray, count: int) -> None:
    """Write live back to the state."""
    for d in range(count):
        i = who[d]
        state[DUE, i] = live[NEXT, d]
        state[CTX, i] = live[READ, d]
        state[OUT, i] = live[LEFT, d]


@reduction
def earliest(live: FloatArray, count: int) -> tuple[float, float, float]:
    """Earliest due time, earliest due time if everyone got a token now, tightest TPOT; infinite for nobody."""
    end = np.inf
    second = np.inf
    tightest = np.inf
    for d in range(count):
        end = min(end, live[NEXT, d])
        second = min(second, live[NEXT, d] + live[STEP, d])
        tightest = min(tightest, live[STEP, d])
    return end, second, tightest


@reduction
def take_before(live: FloatArray, count: int, threshold: float) -> tuple[float, float]:
    """Take those due before the threshold; returns how many and the KV they read (whole numbers: sums are exact)."""
    taken = 0.0
    kv = 0.0
    for d in range(count):
        take = 1.0 if live[NEXT, d] < threshold else 0.0
        live[TAKEN, d] = take
        taken += take
        kv += take * live[READ, d]
    return taken, kv


@kernel
def advance(live: FloatArray, count: int) -> None:
    """Everyone taken gets a token."""
    for d in range(count):
        take = live[TAKEN, d]
        live[NEXT, d] += take * live[STEP, d]
        live[READ, d] += take
        live[LEFT, d] = max(live[LEFT, d] - take, 1.0)


@kernel
def most_urgent(live: FloatArray, count: int) -> int:
    """Who is due first; -1 when nobody decodes."""
    found = -1
    for d in range(count):
        if found < 0 or live[NEXT, d] < live[NEXT, found]:
            found = d
    return found
