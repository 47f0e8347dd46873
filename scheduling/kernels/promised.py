"""The batch of the promised requests.

Batches are tried from the most generous to the most careful; the first is taken from whose outcome the exact
simulation still finds every promise kept. So what admission found feasible stays feasible, whatever is done ahead.
"""

from __future__ import annotations

import numpy as np

from scheduling.kernels.batches import CAP_IDLE, CAP_LONGEST, CAP_SHORTEST, FORMED, batch_cap, commit_batch, form_batch
from scheduling.kernels.jit import kernel
from scheduling.kernels.rollout import FEASIBLE, feasible_from
from scheduling.kernels.rows import CTX, DUE, EPS, PACE, REM, ROWS, gather
from scheduling.kernels.shed import shed_latest
from scheduling.kernels.speculation import speculate
from scheduling.kernels.steptime import add_chunk, start_load
from scheduling.request_table import ACTIVE, STANDARD, BoolArray, FloatArray, IntArray

EAGER_SPECULATIVE, EAGER, LAZY, LAZY_LONG, EAGER_BARE, LAZY_BARE = 0, 1, 2, 3, 4, 5
"""Attempts in order. Eager: every decode in the batch; lazy: only those whose turn it is; long: without the cap on
duration; bare: planned without the time model's margin, when with it not all promises look keepable."""


@kernel
def alone_s(rem: float, ctx: float, lines: FloatArray, max_tokens: float, load: FloatArray) -> float:
    """Seconds until the next token of a request that has the engine to itself."""
    if rem == 0.0:
        return start_load(lines, 1.0, ctx, load)
    total = 0.0
    while rem > 0.0:
        chunk = min(rem, max_tokens)
        start_load(lines, 0.0, 0.0, load)
        total += add_chunk(lines, load, chunk, ctx)
        ctx += chunk
        rem -= chunk
    return total


@kernel
def in_time_alone(
    slots: IntArray,
    ints: IntArray,
    floats: FloatArray,
    now: float,
    bare: FloatArray,
    max_tokens: float,
    load: FloatArray,
) -> tuple[IntArray, FloatArray, IntArray]:
    """Split requests: (slots whose next token is in time if they wait for nobody, their state, the other slots)."""
    n = len(slots)
    slots = slots.copy()
    state = gather(slots, ints, floats, 0)
    missed = np.empty(n, np.int64)
    lost = 0
    kept = 0
    for i in range(n):
        if now + alone_s(state[REM, i], state[CTX, i], bare, max_tokens, load) > state[DUE, i] + EPS:
            missed[lost] = slots[i]
            lost += 1
        else:
            if kept < i:
                slots[kept] = slots[i]
                for row in range(ROWS):
                    state[row, kept] = state[row, i]
            kept += 1
    return slots[:kept], state[:, :kept].copy(), missed[:lost]


@kernel
def keep_promised(
    ints: IntArray,
    floats: FloatArray,
    flags: BoolArray,
    used: int,
    now: float,
    bare: FloatArray,
    max_tokens: float,
    load: FloatArray,
) -> tuple[IntArray, FloatArray, IntArray]:
    """Split the promised requests: (slots still in time, their state, slots that have missed or now must miss)."""
    slots = np.flatnonzero(flags[ACTIVE, :used] & flags[STANDARD, :used])
    return in_time_alone(slots, ints, floats, now, bare, max_tokens, load)


@kernel
def choose_batch(
    slots: IntArray,
    floats: FloatArray,
    state: FloatArray,
    n: int,
    order: IntArray,
    m: int,
    now: float,
    lines: FloatArray,
    bare: FloatArray,
    caps: FloatArray,
    max_tokens: float,
    max_requests: float,
    accept_rate: FloatArray,
    max_spec: int,
    served: BoolArray,
    chunks: FloatArray,
    spec: IntArray,
    load: FloatArray,
    relegated: BoolArray,
) -> tuple[float, float, int, bool]:
    """Fill served, chunks and spec; returns (duration, end bound, position after the last chunk, time to spare).

    When not even the bare times keep every promise, requests are given up in `relegated`.
    """
    scratch_chunks = np.zeros(m)
    wide = caps.copy()
    wide[CAP_SHORTEST] = wide[CAP_LONGEST] = wide[CAP_IDLE] = np.inf
    drafts, draft_steps = 0.0, 0.0
    if max_spec > 1:
        tightest = np.inf
        for i in range(n):
            if state[REM, i] == 0.0:
                tightest = min(tightest, state[PACE, i])
        drafts = float(speculate(state, n, accept_rate, lines, batch_cap(tightest, caps), max_spec, spec))
        for i in range(n):
            draft_steps = max(draft_steps, spec[i] - 1.0)
    for attempt in range(EAGER_SPECULATIVE if drafts > 0.0 else EAGER, LAZY_BARE + 1):
        eager = attempt in (EAGER_SPECULATIVE, EAGER, EAGER_BARE)
        use_lines = lines if attempt < EAGER_BARE else bare
        use_caps = wide if attempt == LAZY_LONG else caps
        if attempt == EAGER:
            drafts, draft_steps = 0.0, 0.0
            spec[:] = 1
        outcome, time, end, after, _bind = form_batch(
            state, n, order, 0, m, now, eager, drafts, draft_steps, use_lines, use_caps, max_tokens, max_requests,
            served, chunks, load,
        )  # fmt: skip
        if outcome != FORMED:
            continue
        trial = state.copy()
        head = commit_batch(trial, n, order, 0, after, served, chunks)
        verdict, _done, _bind = feasible_from(
            trial, n, order, head, m, now + time, use_lines, use_caps, max_tokens, max_requests,
            scratch_chunks, load,
        )  # fmt: skip
        if verdict == FEASIBLE:
            return time, end, after, attempt <= EAGER
    after, time, end = shed_latest(
        slots, floats, state, n, order, m, now, bare, wide, max_tokens, max_requests, served, chunks, load, relegated
    )
    return time, end, after, False
