"""One batch of Algorithm 2 (ALGORITHMS section 4) in per-request form.

The batch ends by the earliest deadline of any promised request: next token of a decode, or first token of a prefill.
Decodes whose turn has come get a token, the rest skips the batch; what remains of the time is prefill, earliest
deadline first.
"""

from __future__ import annotations

import numpy as np

from scheduling.kernels.decodes import (
    LIVE_ROWS,
    NEXT,
    READ,
    TAKEN,
    earliest,
    gather_decodes,
    most_urgent,
    take_before,
)
from scheduling.kernels.jit import kernel
from scheduling.kernels.rows import CTX, DUE, EPS, REM
from scheduling.kernels.steptime import add_chunk, add_speculation, largest_chunk, start_load
from scheduling.request_table import BoolArray, FloatArray, IntArray

FORMED, DECODE_LATE, PREFILL_LATE = 0, 1, 2
"""Outcomes: formed, or the request that no batch can serve in time."""

CAP_IDLE, CAP_PACES, CAP_LONGEST, CAP_SHORTEST, CAP_AHEAD = 0, 1, 2, 3, 4
CAPS = 5
"""Cap on the duration of a batch: CAP_IDLE seconds while nothing decodes, otherwise CAP_PACES times the tightest
resident TPOT, within [CAP_SHORTEST, CAP_LONGEST] seconds. CAP_AHEAD: seconds by which decodes run ahead of their
deadlines in eager batches, where these leave no time for all prompts that wait."""


@kernel
def batch_cap(tightest_pace: float, caps: FloatArray) -> float:
    """Longest batch for these residents: arrivals wait for its end, but long batches waste less."""
    if tightest_pace == np.inf:
        return float(caps[CAP_IDLE])
    return float(max(caps[CAP_SHORTEST], min(caps[CAP_LONGEST], caps[CAP_PACES] * tightest_pace)))


@kernel
def form_batch(
    state: FloatArray,
    n: int,
    order: IntArray,
    first: int,
    m: int,
    now: float,
    eager: bool,
    verified: IntArray,
    lines: FloatArray,
    caps: FloatArray,
    max_tokens: float,
    max_requests: float,
    served: BoolArray,
    chunks: FloatArray,
    load: FloatArray,
) -> tuple[int, float, float, int, int]:
    """Fill served[i] for decodes and chunks[p] for order positions p from `first` on.

    eager: every decode gets its token (those ahead of their deadline too, but by no more than CAP_AHEAD where they
    leave no time for all prompts that wait, and nothing is verified); otherwise only those that would bind the batch
    after this one. verified: tokens to verify for each request that is served, empty for one each. Returns (outcome,
    duration, end bound, position after the last chunk, request that binds).
    """
    live = np.empty((LIVE_ROWS, n))
    who = np.empty(n, np.int64)
    count = gather_decodes(state, n, live, who)
    outcome, time, end, at, bind = form_live_batch(
        live, who, count, state, order, first, m, now, eager, verified, lines, caps, max_tokens, max_requests,
        chunks, load,
    )  # fmt: skip
    served[:n] = False
    if outcome != DECODE_LATE:
        for d in range(count):
            served[who[d]] = live[TAKEN, d] > 0.0
    return outcome, time, end, at, bind


@kernel
def form_live_batch(
    live: FloatArray,
    who: IntArray,
    count: int,
    state: FloatArray,
    order: IntArray,
    first: int,
    m: int,
    now: float,
    eager: bool,
    verified: IntArray,
    lines: FloatArray,
    caps: FloatArray,
    max_tokens: float,
    max_requests: float,
    chunks: FloatArray,
    load: FloatArray,
) -> tuple[int, float, float, int, int]:
    """form_batch for decodes in `live` (the state is asked for prefills only); those served are marked there."""
    end, second, tightest = earliest(live, count)
    by_decode = True
    head = first
    while head < m and state[REM, order[head]] <= 0.0:
        chunks[head] = 0.0
        head += 1
    if head < m and state[DUE, order[head]] < end:
        end = state[DUE, order[head]]
        by_decode = False
    cap = batch_cap(tightest, caps)
    end = min(end, now + cap)
    # The batch after this one could last until `second` if every decode were served now; whoever is due later than
    # that does not bind it and can skip this one.
    threshold = min(second, end + cap) - EPS
    decodes, kv = take_before(live, count, np.inf if eager else threshold)
    time = start_load(lines, decodes, kv, load)
    # Who ends may have been the one that set the threshold: more decodes are taken then, and a prompt that had its time
    # must not lose it to them.
    if not eager and len(verified) == 0 and head < m and end == state[DUE, order[head]]:
        i = order[head]
        if not _in_time_beside(lines, load, end - now, state[CTX, i], state[REM, i], max_tokens - decodes):
            decodes, time = _serve_beside(
                live, count, end - now, state[CTX, i], state[REM, i], lines, max_tokens, max_requests, load
            )
    if eager and len(verified) == 0 and head < m and caps[CAP_AHEAD] < np.inf:
        waiting = 0.0
        for at in range(head, m):
            waiting += max(state[REM, order[at]], 0.0)
        if largest_chunk(lines, load, end - now, 0.0, waiting) < waiting:
            decodes, kv = take_before(live, count, max(threshold, now + caps[CAP_AHEAD]))
            time = start_load(lines, decodes, kv, load)
    drafts, deepest = _drafts(live, who, count, verified)
    if drafts > 0.0:
        time = add_speculation(lines, load, drafts, deepest)
    if decodes > max_requests or decodes + drafts > max_tokens or (decodes > 0.0 and now + time > end + EPS):
        decodes = -1.0
        if not eager and drafts == 0.0:
            decodes, time = _serve_most_urgent(live, count, now, end, lines, min(max_tokens, max_requests), load)
        if decodes < 0.0:
            return DECODE_LATE, 0.0, end, head, _binds(by_decode, live, who, count, order, head)
    room = max_tokens - decodes - drafts
    requests = decodes
    at = head
    while at < m and room >= 1.0 and requests < max_requests:
        i = order[at]
        if state[REM, i] <= 0.0:
            chunks[at] = 0.0
            at += 1
            continue
        chunk = largest_chunk(lines, load, end - now, state[CTX, i], min(room, state[REM, i]))
        if chunk < 1.0:
            break
        time = add_chunk(lines, load, chunk, state[CTX, i])
        chunks[at] = chunk
        room -= chunk
        requests += 1.0
        at += 1
        if chunk < state[REM, i]:
            break
    if decodes == 0.0 and at == head:
        return PREFILL_LATE, 0.0, end, head, _binds(by_decode, live, who, count, order, head)
    return FORMED, time, end, at, -1


@kernel
def _drafts(live: FloatArray, who: IntArray, count: int, verified: IntArray) -> tuple[float, float]:
    """Tokens to verify beside one for each decode that is served: in all, and for the one with most."""
    drafts, deepest = 0.0, 0.0
    if len(verified) > 0:
        for d in range(count):
            mine = live[TAKEN, d] * (verified[who[d]] - 1.0)
            drafts += mine
            deepest = max(deepest, mine)
    return drafts, deepest


@kernel
def _binds(by_decode: bool, live: FloatArray, who: IntArray, count: int, order: IntArray, head: int) -> int:
    """Request with the earliest deadline."""
    if by_decode:
        first = most_urgent(live, count)
        return int(who[first]) if first >= 0 else -1
    return int(order[head])


@kernel
def _put_back(live: FloatArray, count: int) -> IntArray:
    """Take nobody any more; returns who was taken, earliest deadline first."""
    taken = np.flatnonzero(live[TAKEN, :count] > 0.0)
    live[TAKEN, :count] = 0.0
    return taken[np.argsort(live[NEXT, :count][taken])]


@kernel
def _serve_most_urgent(
    live: FloatArray, count: int, now: float, end: float, lines: FloatArray, limit: float, load: FloatArray
) -> tuple[float, float]:
    """Take only the earliest deadlines that fit; returns (how many, duration), -1 when not even those due fit."""
    taken = 0.0
    kv = 0.0
    for d in _put_back(live, count):
        kv += live[READ, d]
        next_time = start_load(lines, taken + 1.0, kv, load)
        if now + next_time > end + EPS or taken + 1.0 > limit:
            kv -= live[READ, d]
            if live[NEXT, d] <= end + EPS:
                return -1.0, 0.0
            break
        taken += 1.0
        live[TAKEN, d] = 1.0
    # Nobody fits and nobody is due: the end is a prefill's deadline, and whether that one fits is seen next.
    return taken, start_load(lines, taken, kv, load)


@kernel
def _in_time_beside(lines: FloatArray, load: FloatArray, time: float, ctx: float, rem: float, room: float) -> bool:
    """Whether a prompt's last chunk fits into so much time beside this load, and into so many tokens."""
    return bool(rem <= room and largest_chunk(lines, load, time, ctx, rem) >= rem)


@kernel
def _serve_beside(
    live: FloatArray,
    count: int,
    time: float,
    ctx: float,
    rem: float,
    lines: FloatArray,
    max_tokens: float,
    max_requests: float,
    load: FloatArray,
) -> tuple[float, float]:
    """Of those taken, keep the earliest deadlines that leave a prompt the time for its last chunk.

    For a batch that ends when that prompt is due, which is before any decode's next token is. Returns (how many,
    duration without the chunk).
    """
    taken = 0.0
    kv = 0.0
    for d in _put_back(live, count):
        start_load(lines, taken + 1.0, kv + live[READ, d], load)
        fits = _in_time_beside(lines, load, time, ctx, rem, max_tokens - taken - 1.0)
        if not fits or taken + 2.0 > max_requests:
            break
        taken += 1.0
        kv += live[READ, d]
        live[TAKEN, d] = 1.0
    return taken, start_load(lines, taken, kv, load)
