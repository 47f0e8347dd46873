"""Exact simulation of batches from per-request deadlines: the one oracle for admission, batching, routing, promotion.

A state is feasible when the batches of `form_batch`, one after the other, finish every prefill by its deadline and
give every decode its tokens in time. Whether the decodes can go on side by side until they end is a question for
`peak.sustainable`.
"""

from __future__ import annotations

import numpy as np

from scheduling.kernels.batches import DECODE_LATE, FORMED, commit_batch, form_batch
from scheduling.kernels.jit import kernel
from scheduling.kernels.rows import CTX, DUE, EPS, PACE, REM
from scheduling.kernels.steptime import duration
from scheduling.request_table import BoolArray, FloatArray, IntArray

MAX_BATCHES = 4096
FEASIBLE, LATE_DECODE, LATE_PREFILL, OVERLOAD, NO_MEMORY, TOO_MANY = 0, 1, 2, 3, 4, 5
"""Verdicts. OVERLOAD: the decodes cannot be sustained side by side; NO_MEMORY: their KV will not fit when they have
grown; TOO_MANY: more requests than the engine runs at once."""


@kernel
def run_prefills(
    state: FloatArray,
    n: int,
    order: IntArray,
    head: int,
    m: int,
    stop: int,
    now: float,
    lines: FloatArray,
    caps: FloatArray,
    max_tokens: float,
    max_requests: float,
    served: BoolArray,
    chunks: FloatArray,
    load: FloatArray,
) -> tuple[int, float, int, int]:
    """Advance the state in place; returns (verdict, time, head of the order, request that binds).

    stop < m: end before the first batch that completes every prefill at order positions before `stop`. Up to there
    nothing depends on whether a request at a later position is part of the set. stop = m: until all prefills are done.
    """
    for _ in range(MAX_BATCHES):
        while head < m and state[REM, order[head]] <= 0.0:
            head += 1
        if head >= stop:
            return FEASIBLE, now, head, -1
        outcome, time, _end, after, bind = form_batch(
            state, n, order, head, m, now, False, 0.0, 0.0, lines, caps, max_tokens, max_requests, served, chunks, load
        )
        if outcome != FORMED:
            return (LATE_DECODE if outcome == DECODE_LATE else LATE_PREFILL), now, head, bind
        if stop < m and after >= stop and chunks[stop - 1] >= state[REM, order[stop - 1]]:
            return FEASIBLE, now, head, -1
        head = commit_batch(state, n, order, head, after, served, chunks)
        now += time
    return LATE_PREFILL, now, head, order[head]


@kernel
def run_decodes(
    state: FloatArray,
    n: int,
    now: float,
    lines: FloatArray,
    caps: FloatArray,
    max_tokens: float,
    max_requests: float,
    served: BoolArray,
    load: FloatArray,
) -> tuple[int, int]:
    """Check that decodes alone go on from here: until all fit in one batch in time, or everyone has had two turns."""
    nobody = np.empty(0, np.int64)
    nothing = np.empty(0)
    limit = min(max_tokens, max_requests)
    horizon = now
    for _ in range(MAX_BATCHES):
        kv = 0.0
        count = 0.0
        due = np.inf
        tightest = np.inf
        loosest = 0.0
        for i in range(n):
            if state[REM, i] == 0.0:
                kv += state[CTX, i]
                count += 1.0
                due = min(due, state[DUE, i])
                tightest = min(tightest, state[PACE, i])
                loosest = max(loosest, state[PACE, i])
        if count == 0.0:
            return FEASIBLE, -1
        if horizon == now:
            horizon = now + 2.0 * loosest
        together = duration(lines, count, count, kv)
        if count <= limit and together <= tightest and now + together <= due + EPS:
            return FEASIBLE, -1
        outcome, time, _end, _after, bind = form_batch(
            state, n, nobody, 0, 0, now, False, 0.0, 0.0, lines, caps, max_tokens, max_requests, served, nothing, load
        )
        if outcome != FORMED:
            return LATE_DECODE, bind
        commit_batch(state, n, nobody, 0, 0, served, nothing)
        now += time
        if now > horizon:
            return FEASIBLE, -1
    return FEASIBLE, -1


@kernel
def feasible_from(
    state: FloatArray,
    n: int,
    order: IntArray,
    head: int,
    m: int,
    now: float,
    lines: FloatArray,
    caps: FloatArray,
    max_tokens: float,
    max_requests: float,
    served: BoolArray,
    chunks: FloatArray,
    load: FloatArray,
) -> tuple[int, float, int]:
    """Simulate from this state (destroyed) to the end; returns (verdict, when the prefills are done, who binds)."""
    verdict, time, head, bind = run_prefills(
        state, n, order, head, m, m, now, lines, caps, max_tokens, max_requests, served, chunks, load
    )
    if verdict != FEASIBLE:
        return verdict, time, bind
    verdict, bind = run_decodes(state, n, time, lines, caps, max_tokens, max_requests, served, load)
    return verdict, time, bind
