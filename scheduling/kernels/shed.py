"""Whom to give up when not even the promised requests can all be kept (a misprediction).

Moore and Hodgson's rule: when a prefill would be late, giving up the largest remaining one (per value) among those due
no later loses the fewest. When decodes are too many, the least valuable with the most to come goes.
"""

from __future__ import annotations

import numpy as np

from scheduling.kernels.batches import FORMED, form_batch
from scheduling.kernels.jit import kernel
from scheduling.kernels.rollout import FEASIBLE, LATE_DECODE, LATE_PREFILL, feasible_from
from scheduling.kernels.rows import ABSENT, CTX, OUT, REM
from scheduling.kernels.steptime import add_chunk, start_load
from scheduling.request_table import VALUE, BoolArray, FloatArray, IntArray


@kernel
def largest_prefill(
    slots: IntArray, state: FloatArray, first: int, floats: FloatArray, order: IntArray, m: int, bind: int
) -> int:
    """Column of the largest remaining prefill per value due no later than `bind`, of columns from first on; or -1."""
    victim = -1
    worst = -1.0
    for at in range(m):
        i = order[at]
        if i >= first and state[REM, i] > 0.0 and state[REM, i] / floats[VALUE, slots[i]] > worst:
            worst = state[REM, i] / floats[VALUE, slots[i]]
            victim = i
        if i == bind:
            break
    return victim


@kernel
def shed_latest(
    slots: IntArray,
    floats: FloatArray,
    state: FloatArray,
    n: int,
    order: IntArray,
    m: int,
    now: float,
    lines: FloatArray,
    ahead: FloatArray,
    caps: FloatArray,
    max_tokens: float,
    max_requests: float,
    served: BoolArray,
    chunks: FloatArray,
    load: FloatArray,
    relegated: BoolArray,
) -> tuple[int, float, float]:
    """Mark requests in `relegated` until the rest is feasible, and form its batch.

    lines: of this batch; ahead: of those that are simulated.

    Returns (order position after the last chunk, duration, end bound); `state` loses those given up.
    """
    for _ in range(n):
        trial = state.copy()
        verdict, time, bind = feasible_from(
            trial, n, order, 0, m, now, ahead, caps, max_tokens, max_requests, chunks, load
        )
        if verdict == FEASIBLE:
            break
        if verdict != LATE_PREFILL:
            _shed_decodes(
                slots, floats, state, n, order, m, now, ahead, caps, max_tokens, max_requests, chunks, load, relegated,
            )  # fmt: skip
            continue
        victim = largest_prefill(slots, state, 0, floats, order, m, bind)
        if victim < 0:
            break
        state[REM, victim] = ABSENT
        relegated[slots[victim]] = True
    nobody = np.empty(0, np.int64)
    outcome, time, end, after, bind = form_batch(
        state, n, order, 0, m, now, False, nobody, lines, caps, max_tokens, max_requests, served, chunks, load
    )
    if outcome == FORMED:
        return after, time, end
    return form_anything(state, n, order, m, lines, now, max_tokens, max_requests, served, chunks, load)


@kernel
def _shed_decodes(
    slots: IntArray,
    floats: FloatArray,
    state: FloatArray,
    n: int,
    order: IntArray,
    m: int,
    now: float,
    lines: FloatArray,
    caps: FloatArray,
    max_tokens: float,
    max_requests: float,
    chunks: FloatArray,
    load: FloatArray,
    relegated: BoolArray,
) -> None:
    """Give up the fewest decodes, those with the most to come per value first, after which no decode is late."""
    weight = np.zeros(n)
    decodes = 0
    for i in range(n):
        if state[REM, i] == 0.0:
            weight[i] = state[OUT, i] / floats[VALUE, slots[i]]
            decodes += 1
    rank = np.argsort(-weight)
    low, high = 1, max(decodes, 1)
    while low < high:
        middle = (low + high) // 2
        trial = state.copy()
        for k in range(middle):
            trial[REM, rank[k]] = ABSENT
        verdict, _time, _bind = feasible_from(
            trial, n, order, 0, m, now, lines, caps, max_tokens, max_requests, chunks, load
        )
        if verdict == LATE_DECODE:
            low = middle + 1
        else:
            high = middle
    for k in range(low):
        if state[REM, rank[k]] == 0.0:
            state[REM, rank[k]] = ABSENT
            relegated[slots[rank[k]]] = True


@kernel
def form_anything(
    state: FloatArray,
    n: int,
    order: IntArray,
    m: int,
    lines: FloatArray,
    now: float,
    max_tokens: float,
    max_requests: float,
    served: BoolArray,
    chunks: FloatArray,
    load: FloatArray,
) -> tuple[int, float, float]:
    """Every decode, or else one chunk: no deadline can be kept, but work goes on."""
    decodes = 0.0
    kv = 0.0
    limit = min(max_tokens, max_requests)
    for i in range(n):
        served[i] = state[REM, i] == 0.0 and decodes < limit
        if served[i]:
            decodes += 1.0
            kv += state[CTX, i]
    time = start_load(lines, decodes, kv, load)
    if decodes > 0.0:
        return 0, time, now + time
    for at in range(m):
        i = order[at]
        chunks[at] = 0.0
        if state[REM, i] > 0.0:
            chunks[at] = min(state[REM, i], max_tokens)
            time = add_chunk(lines, load, chunks[at], state[CTX, i])
            return at + 1, time, now + time
    return 0, 0.0, np.inf
