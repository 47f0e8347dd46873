"""Layout of the planning state: the promised requests of one replica in a float64 array of shape (ROWS, n).

Row numbers are compile-time constants of the kernels. A request with REM > 0 is in prefill, with REM = 0 it decodes;
REM < 0 marks a candidate that is not part of the state (yet).
"""

from __future__ import annotations

import numpy as np

from scheduling.kernels.jit import kernel
from scheduling.request_table import (
    ANSWER_TPOT,
    CONTEXT,
    GENERATED,
    NEXT_DEADLINE,
    PREFILL_DEADLINE,
    PREFILL_REMAINING,
    REMAINING_OUTPUT,
    TPOT,
    FloatArray,
    IntArray,
)

REM = 0
"""Prompt tokens still to compute; ABSENT for a candidate outside the set."""
ABSENT = -1.0
DUE = 1
"""Seconds: when the next output token is due (the first one, in prefill)."""
PACE = 2
"""TPOT in force, seconds; the tighter one where an answer follows thinking."""
CTX = 3
"""Tokens whose KV is resident."""
OUT = 4
"""Output tokens still to come, estimated."""
ROWS = 5

EPS = 1e-9
"""Seconds: rounding of sums, never a tolerance of a deadline."""


@kernel
def put_resident(slot: int, ints: IntArray, floats: FloatArray, state: FloatArray, i: int) -> None:
    """Fill a column of a planning state with the request in a slot."""
    remaining = ints[PREFILL_REMAINING, slot]
    state[REM, i] = remaining
    if remaining > 0 and ints[GENERATED, slot] == 0:
        state[DUE, i] = floats[PREFILL_DEADLINE, slot]
    else:
        state[DUE, i] = floats[NEXT_DEADLINE, slot]
    state[PACE, i] = min(floats[TPOT, slot], floats[ANSWER_TPOT, slot])
    state[CTX, i] = ints[CONTEXT, slot]
    state[OUT, i] = max(ints[REMAINING_OUTPUT, slot], 1)


@kernel
def prefill_order(state: FloatArray, n: int, room: int) -> tuple[IntArray, int]:
    """Indices of the requests in prefill, earliest deadline first (ties by index), and how many they are."""
    order = np.empty(n + room, np.int64)
    m = 0
    for i in range(n):
        if state[REM, i] > 0:
            due = state[DUE, i]
            at = m
            while at > 0 and state[DUE, order[at - 1]] > due:
                order[at] = order[at - 1]
                at -= 1
            order[at] = i
            m += 1
    return order, m
