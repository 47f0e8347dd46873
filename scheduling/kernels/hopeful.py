"""Requests without a promise that can still be in time share the plan of a step with the promised ones.

The plan is made for both together. When not all can be kept, those without a promise are given up, the fewest of them
(Moore and Hodgson's rule, as in kernels.shed), until the exact simulation finds everybody else in time. So a promise is
kept as if they were not there, and what promises leave goes to whom it can still save.
"""

from __future__ import annotations

import numpy as np

from scheduling.kernels.jit import kernel
from scheduling.kernels.memory import held_blocks, holds_memory
from scheduling.kernels.peak import by_remaining_output, peak_blocks, sustainable
from scheduling.kernels.promised import HOPING, in_time_alone
from scheduling.kernels.rollout import FEASIBLE, LATE_PREFILL, feasible_from
from scheduling.kernels.rows import ABSENT, CTX, DUE, OUT, PACE, REM, prefill_order
from scheduling.kernels.shed import largest_prefill
from scheduling.kernels.spare import FEWEST, kept_share
from scheduling.request_table import VALUE, BoolArray, FloatArray, IntArray

MOST_KEPT = 0.4
"""Most of the memory that stays free when a large hopeful request starts."""
MOST_SLOWER = 0.25
"""Most by which steps must be able to grow with the decodes still sustained, when a large hopeful request starts."""


@kernel
def keep_hopeful(
    ints: IntArray,
    floats: FloatArray,
    flags: BoolArray,
    used: int,
    now: float,
    bare: FloatArray,
    max_tokens: float,
    load: FloatArray,
) -> tuple[IntArray, FloatArray, IntArray]:
    """Split the hopeful requests as keep_promised does the promised ones: (slots, their state, slots given up)."""
    return in_time_alone(HOPING, ints, floats, flags, used, now, bare, max_tokens, load, 0)


@kernel
def join_hopeful(
    joint_slots: IntArray,
    joint: FloatArray,
    paces: FloatArray,
    steps: FloatArray,
    n: int,
    ints: IntArray,
    floats: FloatArray,
    flags: BoolArray,
    used: int,
    now: float,
    free_blocks: int,
    block_size: int,
    kept_memory: float,
    kept_rate: float,
    lines: FloatArray,
    caps: FloatArray,
    max_tokens: float,
    max_requests: float,
    load: FloatArray,
    given_up: BoolArray,
) -> tuple[IntArray, bool]:
    """Columns of the promised requests, which come first, and of the hopeful that can be kept beside them.

    paces, steps: TPOTs and lines of steps where drafts are counted on, by which decodes are sustained. n: the promised.
    kept_memory, kept_rate: what stays free, see BatchSettings.hopeful_memory and hopeful_rate. False where these are
    not feasible by themselves: then they are all. Whoever cannot be kept is marked in given_up; whoever waits for room
    is left out of this step. `joint` is changed.
    """
    count = len(joint_slots)
    joining = _start(
        joint_slots, joint, paces, steps, n, ints, floats, flags, used, free_blocks, block_size, kept_memory, kept_rate,
        max_requests,
    )  # fmt: skip
    order, m = prefill_order(joint, count, 0)
    chunks = np.zeros(m)
    verdict = FEASIBLE
    for attempt in range(joining):
        trial = joint.copy()
        verdict, _done, bind = feasible_from(
            trial, count, order, 0, m, now, lines, caps, max_tokens, max_requests, chunks, load
        )
        if verdict == FEASIBLE:
            break
        if attempt == 0:
            trial[:] = joint
            trial[REM, n:] = ABSENT
            alone, _done, _bind = feasible_from(
                trial, count, order, 0, m, now, lines, caps, max_tokens, max_requests, chunks, load
            )
            if alone != FEASIBLE:
                return np.arange(n), False
        victim = _least_missed(joint_slots, joint, n, floats, order, m, verdict, bind)
        joint[REM, victim] = ABSENT
        given_up[joint_slots[victim]] = True
    return np.flatnonzero(joint[REM] >= 0.0), True


@kernel
def _start(
    slots: IntArray,
    joint: FloatArray,
    paces: FloatArray,
    steps: FloatArray,
    n: int,
    ints: IntArray,
    floats: FloatArray,
    flags: BoolArray,
    used: int,
    free_blocks: int,
    block_size: int,
    kept_memory: float,
    kept_rate: float,
    max_requests: float,
) -> int:
    """Mark as absent whoever has not begun and finds no room, earliest deadline first; returns how many are in.

    Room is there when the future peak of memory of all that are in fits, since a hopeful request that is evicted is
    late, and when they can decode side by side until they end. The more a request needs against the mean of those, the
    more of both must stay free: several small ones could come in its place.
    """
    count = len(slots)
    capacity = float(free_blocks + held_blocks(ints, flags, used))
    rank = by_remaining_output(joint, count)
    rem = joint[REM].copy()
    strict = joint[PACE].copy()
    joint[PACE] = paces
    joining = 0
    for i in range(n, count):
        if holds_memory(ints, slots[i]):
            joining += 1
        else:
            joint[REM, i] = ABSENT
    needs = np.empty(count)
    inside = 0.0
    for i in range(count):
        needs[i] = (joint[CTX, i] + rem[i] + joint[OUT, i]) / floats[VALUE, slots[i]]
        if joint[REM, i] != ABSENT:
            inside += needs[i]
    for k in np.argsort(joint[DUE, n:]):
        i = n + k
        if joint[REM, i] != ABSENT or n + joining + 1.0 > max_requests:
            continue
        kept, slower = 0.0, 0.0
        if n + joining >= FEWEST:
            usual = inside / (n + joining)
            kept = max(0.0, kept_share(needs[i], usual, kept_memory, MOST_KEPT))
            slower = min(kept_rate * needs[i] / usual, MOST_SLOWER)
        joint[REM, i] = rem[i]
        fits = peak_blocks(joint, rank, float(block_size)) <= (1.0 - kept) * capacity
        if fits and sustainable(joint, rank, (1.0 + slower) * steps, max_requests):
            joining += 1
            inside += needs[i]
        else:
            joint[REM, i] = ABSENT
    joint[PACE] = strict
    return joining


@kernel
def _least_missed(
    slots: IntArray,
    joint: FloatArray,
    n: int,
    floats: FloatArray,
    order: IntArray,
    m: int,
    verdict: int,
    bind: int,
) -> int:
    """Column of the hopeful request to give up, one that is in: those from column n on.

    The largest prefill per value, when one is late among those due no later; else the decode with the most to come.
    Where there is no such one, any other: every request takes time.
    """
    victim = largest_prefill(slots, joint, n, floats, order, m, bind if verdict == LATE_PREFILL else -1)
    if victim >= 0:
        return victim
    worst = -1.0
    for decodes in (True, False):
        for i in range(n, len(slots)):
            if joint[REM, i] < 0.0 or (joint[REM, i] == 0.0) != decodes:
                continue
            weight = (joint[OUT, i] if decodes else joint[REM, i]) / floats[VALUE, slots[i]]
            if weight > worst:
                worst = weight
                victim = i
        if victim >= 0:
            break
    return victim
