"""The batch of the promised requests.

Batches are tried from the most generous to the most careful; the first is taken from whose outcome the exact
simulation still finds every promise kept. So what admission found feasible stays feasible, whatever is done ahead.
"""

from __future__ import annotations

import numpy as np

from scheduling.kernels.batches import CAP_IDLE, CAP_LONGEST, CAP_SHORTEST, FORMED, form_batch
from scheduling.kernels.commit import commit_batch
from scheduling.kernels.jit import kernel
from scheduling.kernels.rollout import FEASIBLE, feasible_from
from scheduling.kernels.rows import CTX, DUE, EPS, PACE, REM, ROWS, put_resident
from scheduling.kernels.shed import shed_latest
from scheduling.kernels.steptime import add_chunk, start_load
from scheduling.request_table import ACTIVE, HOPEFUL, STANDARD, BoolArray, FloatArray, IntArray

BEST_EFFORT, PROMISED, HOPING = 0, 1, 2
"""What a resident is: kinds of which planning asks for one or, added up, for more than one."""
EAGER_SPECULATIVE, LAZY_SPECULATIVE, EAGER, LAZY = 0, 1, 2, 3
COUNTED = 4
LAZY_LONG, EAGER_BARE, LAZY_BARE = 8, 9, 10
"""Attempts in order. Eager: every decode in the batch; lazy: only those whose turn it is; speculative: with tokens to
verify, which put decodes ahead and out of batches to come; counted: the same four once more, where later steps are
counted on for more than one token (speculation.count_on); long: without the cap on duration; bare: planned without the
time model's margin, when with it not all promises look keepable. Without speculation the eager and the lazy one are
tried, and the last three."""


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
def kind_of(flags: BoolArray, slot: int) -> int:
    """PROMISED, HOPING, or BEST_EFFORT."""
    return PROMISED if flags[STANDARD, slot] else HOPING if flags[HOPEFUL, slot] else BEST_EFFORT


@kernel
def in_time_alone(
    kinds: int,
    ints: IntArray,
    floats: FloatArray,
    flags: BoolArray,
    used: int,
    now: float,
    bare: FloatArray,
    max_tokens: float,
    load: FloatArray,
    room: int,
) -> tuple[IntArray, FloatArray, IntArray]:
    """Split the residents of these kinds by whether their next token is in time if they wait for nobody.

    Returns (slots of those in time, their state with `room` more columns, the other slots).
    """
    n = 0
    for slot in range(used):
        if flags[ACTIVE, slot] and kind_of(flags, slot) & kinds:
            n += 1
    slots = np.empty(n, np.int64)
    state = np.empty((ROWS, n + room))
    missed = np.empty(n, np.int64)
    lost = 0
    kept = 0
    for slot in range(used):
        if not (flags[ACTIVE, slot] and kind_of(flags, slot) & kinds):
            continue
        put_resident(slot, ints, floats, state, kept)
        if now + alone_s(state[REM, kept], state[CTX, kept], bare, max_tokens, load) > state[DUE, kept] + EPS:
            missed[lost] = slot
            lost += 1
        else:
            slots[kept] = slot
            kept += 1
    if lost == 0:
        return slots, state, missed[:0]
    return slots[:kept], state[:, : kept + room].copy(), missed[:lost]


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
    return in_time_alone(PROMISED, ints, floats, flags, used, now, bare, max_tokens, load, 0)


@kernel
def after_batch(
    state: FloatArray,
    n: int,
    order: IntArray,
    after: int,
    served: BoolArray,
    chunks: FloatArray,
    paces: FloatArray,
    verified: IntArray,
) -> tuple[FloatArray, int]:
    """State after a batch, and the head of the prefill order there.

    paces: those of requests that got one token: of decodes that verified no more, and of prefills that ended.
    """
    trial = state.copy()
    head = commit_batch(trial, n, order, 0, after, served, chunks)
    for i in range(n):
        if (served[i] and verified[i] == 1) or (state[REM, i] > 0.0 and trial[REM, i] == 0.0):
            trial[DUE, i] += paces[i] - state[PACE, i]
    return trial, head


@kernel
def choose_batch(
    slots: IntArray,
    floats: FloatArray,
    state: FloatArray,
    counted: FloatArray,
    n: int,
    order: IntArray,
    m: int,
    now: float,
    lines: FloatArray,
    ahead: FloatArray,
    margin: float,
    caps: FloatArray,
    ahead_caps: FloatArray,
    brief_s: float,
    max_tokens: float,
    max_requests: float,
    spec: IntArray,
    served: BoolArray,
    chunks: FloatArray,
    load: FloatArray,
    relegated: BoolArray,
) -> tuple[float, float, int, int]:
    """Fill served and chunks; returns (duration, end bound, position after the last chunk, the attempt that was taken).

    brief_s: longest batch where nobody needs a longer one: attempts without drafts, whose cost is by step, are made
    with it first, then up to their cap.
    counted, ahead, ahead_caps: state, lines and caps where later steps are counted on for what they are expected to
    yield. spec: tokens to verify; all 1 on return where the batch has no time for that. When not even the bare times
    keep every promise, requests are given up in `relegated`, and both states lose them.
    """
    scratch_chunks = np.zeros(m)
    nobody = np.empty(0, np.int64)
    plain = np.ones(n, np.int64)
    speculates = (spec > 1).any()
    counts = (counted[PACE] != state[PACE]).any()
    for attempt in range(LAZY_BARE + 1):
        kind = attempt % COUNTED if attempt < LAZY_LONG else EAGER if attempt == EAGER_BARE else LAZY
        drafts = kind < EAGER
        if (drafts and not speculates) or (COUNTED <= attempt < LAZY_LONG and not counts):
            continue
        on_counted = attempt >= COUNTED
        slack = 1.0 if attempt < EAGER_BARE else margin
        now_state, use_caps = (counted, ahead_caps) if on_counted else (state, caps)
        form_lines, later_lines = lines, ahead if on_counted else lines
        if slack != 1.0:
            form_lines, later_lines = form_lines / slack, later_lines / slack
        if attempt == LAZY_LONG:
            use_caps = _unbounded(use_caps)
        brief_caps = _at_most(use_caps, brief_s)
        for brief in (True, False):
            if brief and (drafts or attempt >= LAZY_LONG or brief_caps[CAP_LONGEST] == use_caps[CAP_LONGEST]):
                continue
            form_caps = brief_caps if brief else use_caps
            outcome, time, end, after, _bind = form_batch(
                now_state, n, order, 0, m, now, kind in (EAGER_SPECULATIVE, EAGER), spec if drafts else nobody,
                form_lines, form_caps, max_tokens, max_requests, served, chunks, load,
            )  # fmt: skip
            if outcome != FORMED:
                continue
            verified = spec if drafts else plain
            trial, head = after_batch(now_state, n, order, after, served, chunks, state[PACE], verified)
            verdict, _done, _bind = feasible_from(
                trial, n, order, head, m, now + time, later_lines, use_caps, max_tokens, max_requests, scratch_chunks,
                load,
            )  # fmt: skip
            if verdict == FEASIBLE:
                if not drafts:
                    spec[:] = plain
                return time, end, after, attempt
    spec[:] = plain
    after, time, end = shed_latest(
        slots, floats, counted, n, order, m, now, lines / margin, ahead / margin, _unbounded(ahead_caps), max_tokens,
        max_requests, served, chunks, load, relegated,
    )  # fmt: skip
    state[REM] = counted[REM]
    return time, end, after, LAZY_BARE


@kernel
def _at_most(caps: FloatArray, longest_s: float) -> FloatArray:
    """Caps of batches that last at most so long, but still as long as every batch may."""
    brief = caps.copy()
    brief[CAP_LONGEST] = min(caps[CAP_LONGEST], max(caps[CAP_SHORTEST], longest_s))
    brief[CAP_IDLE] = min(caps[CAP_IDLE], brief[CAP_LONGEST])
    return brief


@kernel
def _unbounded(caps: FloatArray) -> FloatArray:
    """Caps that bound a batch by nobody's TPOT."""
    wide = caps.copy()
    wide[CAP_SHORTEST] = wide[CAP_LONGEST] = wide[CAP_IDLE] = np.inf
    return wide
