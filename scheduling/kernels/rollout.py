"""Exact simulation of batches from per-request deadlines: the one oracle for admission, batching, routing, promotion.

A state is feasible when the batches of `form_batch`, one after the other, finish every prefill by its deadline and
give every decode its tokens in time. Whether the decodes can go on side by side until they end is a question for
`peak.sustainable`.
"""

from __future__ import annotations

import numpy as np

from scheduling.kernels.batches import DECODE_LATE, FORMED, form_live_batch
from scheduling.kernels.commit import commit_live_batch
from scheduling.kernels.decodes import (
    LIVE_ROWS,
    READ,
    STEP,
    TAKEN,
    advance,
    earliest,
    gather_decodes,
    write_decodes,
)
from scheduling.kernels.jit import kernel
from scheduling.kernels.rows import EPS, REM
from scheduling.kernels.steptime import duration
from scheduling.request_table import FloatArray, IntArray

MAX_BATCHES = 4096
FEASIBLE, LATE_DECODE, LATE_PREFILL, OVERLOAD, NO_MEMORY, TOO_MANY, TOO_LARGE = 0, 1, 2, 3, 4, 5, 6
"""Verdicts. OVERLOAD: the decodes cannot be sustained side by side; NO_MEMORY: their KV will not fit when they have
grown; TOO_MANY: more requests than the engine runs at once; TOO_LARGE: feasible, but leaves others too little."""


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
    chunks: FloatArray,
    load: FloatArray,
) -> tuple[int, float, int, int]:
    """Advance the state in place; returns (verdict, time, head of the order, request that binds).

    stop < m: end before the first batch that completes every prefill at order positions before `stop`. Up to there
    nothing depends on whether a request at a later position is part of the set. stop = m: until all prefills are done.
    """
    nobody = np.empty(0, np.int64)
    live = np.empty((LIVE_ROWS, n))
    who = np.empty(n, np.int64)
    count = gather_decodes(state, n, live, who)
    verdict = LATE_PREFILL
    bind = -1
    for _ in range(MAX_BATCHES):
        while head < m and state[REM, order[head]] <= 0.0:
            head += 1
        if head >= stop:
            verdict = FEASIBLE
            break
        bind = order[head]
        outcome, time, _end, after, first = form_live_batch(
            live, who, count, state, order, head, m, now, False, nobody, lines, caps, max_tokens, max_requests,
            chunks, load,
        )  # fmt: skip
        if outcome != FORMED:
            verdict = LATE_DECODE if outcome == DECODE_LATE else LATE_PREFILL
            bind = first
            break
        if stop < m and after >= stop and chunks[stop - 1] >= state[REM, order[stop - 1]]:
            verdict = FEASIBLE
            break
        head, count = commit_live_batch(live, who, count, state, order, head, after, chunks)
        now += time
    write_decodes(state, live, who, count)
    return verdict, now, head, bind


@kernel
def run_decodes(
    state: FloatArray,
    n: int,
    now: float,
    lines: FloatArray,
    caps: FloatArray,
    max_tokens: float,
    max_requests: float,
    load: FloatArray,
) -> tuple[int, int]:
    """Check that decodes alone go on from here: until all fit in one batch in time, or everyone has had two turns.

    The state is left as it is.
    """
    nobody = np.empty(0, np.int64)
    nothing = np.empty(0)
    live = np.empty((LIVE_ROWS, n))
    who = np.empty(n, np.int64)
    count = gather_decodes(state, n, live, who)
    if count == 0:
        return FEASIBLE, -1
    loosest = 0.0
    kv = 0.0
    for d in range(count):
        loosest = max(loosest, live[STEP, d])
        kv += live[READ, d]
    horizon = now + 2.0 * loosest
    for _ in range(MAX_BATCHES):
        due, _second, tightest = earliest(live, count)
        together = duration(lines, float(count), float(count), kv)
        if count <= min(max_tokens, max_requests) and together <= tightest and now + together <= due + EPS:
            return FEASIBLE, -1
        outcome, time, _end, _after, bind = form_live_batch(
            live, who, count, state, nobody, 0, 0, now, False, nobody, lines, caps, max_tokens, max_requests,
            nothing, load,
        )  # fmt: skip
        if outcome != FORMED:
            return LATE_DECODE, bind
        for d in range(count):
            kv += live[TAKEN, d]
        advance(live, count)
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
    chunks: FloatArray,
    load: FloatArray,
) -> tuple[int, float, int]:
    """Simulate from this state (destroyed) to the end; returns (verdict, when the prefills are done, who binds)."""
    verdict, time, head, bind = run_prefills(
        state, n, order, head, m, m, now, lines, caps, max_tokens, max_requests, chunks, load
    )
    if verdict != FEASIBLE:
        return verdict, time, bind
    verdict, bind = run_decodes(state, n, time, lines, caps, max_tokens, max_requests, load)
    return verdict, time, bind
