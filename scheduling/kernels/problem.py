"""One replica's admission problem: promised residents and newcomers side by side, and whether all of them fit."""

from __future__ import annotations

import numpy as np

from scheduling.kernels.jit import kernel
from scheduling.kernels.peak import by_remaining_output, peak_blocks
from scheduling.kernels.promised import HOPING, PROMISED, in_time_alone, kind_of
from scheduling.kernels.rollout import FEASIBLE, TOO_LARGE
from scheduling.kernels.rows import ABSENT, CTX, DUE, OUT, PACE, REM, ROWS, prefill_order
from scheduling.kernels.search import check_set
from scheduling.kernels.spare import FEWEST, latest_done_s, means, spares_memory
from scheduling.kernels.speculation import count_on
from scheduling.kernels.step import batch_caps
from scheduling.request_table import (
    ACCEPT_RATE,
    ACTIVE,
    DRAFT_SHARE,
    KV_BLOCKS,
    BoolArray,
    FloatArray,
    IntArray,
)

NOBODY, ITSELF = -1, -2
"""In place of the slot of who binds: none does; the newcomer."""


@kernel
def assemble(
    ints: IntArray,
    floats: FloatArray,
    flags: BoolArray,
    used: int,
    now: float,
    free_blocks: int,
    model: FloatArray,
    margin: float,
    settings: FloatArray,
    floor: float,
    beside_hopeful: bool,
    max_tokens: float,
    max_spec: int,
    newcomers: FloatArray,
) -> tuple[IntArray, FloatArray, IntArray, IntArray, FloatArray, FloatArray, float]:
    """Residents that can still be in time, and the newcomers (rows of `newcomers`, one column of the state each).

    model: lines of the time model, with the margin in them. floor: share of the time that is left to best-effort work
    while there is any. beside_hopeful: hopeful residents are kept too, not only promised ones.

    Returns (slots of the residents, state with everybody in it, order of all prefills, all by remaining output, lines
    and caps of the plan, blocks that it may use).
    """
    kinds = PROMISED | HOPING if beside_hopeful else PROMISED
    count = newcomers.shape[0]
    slots, state, _missed = in_time_alone(
        kinds, ints, floats, flags, used, now, model / margin, max_tokens, np.empty(model.shape[0]), count
    )
    n = len(slots)
    for k in range(count):
        for row in range(ROWS):
            state[row, n + k] = newcomers[k, row]
    order, m = prefill_order(state, n + count, 0)
    capacity = free_blocks
    best_effort = False
    for slot in range(used):
        if flags[ACTIVE, slot]:
            capacity += ints[KV_BLOCKS, slot]
            best_effort = best_effort or not kind_of(flags, slot) & kinds
    lines = model / (1.0 - floor) if best_effort else model.copy()
    caps = batch_caps(lines, settings)
    if max_spec > 1:
        lines = counted_on(slots, state, floats, lines, caps, max_spec)
    return slots, state, order[:m], by_remaining_output(state, n + count), lines, caps, float(capacity)


@kernel
def set_up(
    ints: IntArray,
    floats: FloatArray,
    flags: BoolArray,
    used: int,
    now: float,
    free_blocks: int,
    model: FloatArray,
    margin: float,
    settings: FloatArray,
    floor: float,
    beside_hopeful: bool,
    max_tokens: float,
    max_requests: float,
    block_size: float,
    max_spec: int,
    newcomers: FloatArray,
) -> tuple[
    IntArray, FloatArray, IntArray, IntArray, IntArray, FloatArray, IntArray, FloatArray, FloatArray, float,
    tuple[int, int, float, float],
]:  # fmt: skip
    """Assemble a problem of which sets of newcomers are looked for.

    Returns (slots of the residents, state with the newcomers absent, order of all prefills, all by remaining output,
    columns of the newcomers, their prompt tokens, their positions in the order or -1, lines and caps of the plan,
    blocks that it may use, and what check_set says of everybody together).
    """
    slots, state, order, rank, lines, caps, capacity = assemble(
        ints, floats, flags, used, now, free_blocks, model, margin, settings, floor, beside_hopeful, max_tokens,
        max_spec, newcomers,
    )  # fmt: skip
    n, everybody = len(slots), state.shape[1]
    position = np.full(everybody - n, -1)
    for at in range(len(order)):
        if order[at] >= n:
            position[order[at] - n] = at
    of_all = check_set(
        state, state, order, 0, now, rank, lines, caps, max_tokens, max_requests, block_size, capacity,
        np.empty((ROWS, everybody)), np.zeros(len(order)), np.empty(model.shape[0]),
    )  # fmt: skip
    item_rem = state[REM, n:].copy()
    state[REM, n:] = ABSENT
    return slots, state, order, rank, np.arange(n, everybody), item_rem, position, lines, caps, capacity, of_all


@kernel
def ask_for_one(
    ints: IntArray,
    floats: FloatArray,
    flags: BoolArray,
    used: int,
    now: float,
    free_blocks: int,
    model: FloatArray,
    margin: float,
    settings: FloatArray,
    floor: float,
    beside_hopeful: bool,
    max_tokens: float,
    max_requests: float,
    block_size: float,
    max_spec: int,
    shares: FloatArray,
    explains: bool,
    rem: float,
    due: float,
    pace: float,
    ctx: float,
    out: float,
    value: float,
) -> tuple[int, int, float, float, int, float]:
    """Whether one newcomer can come: the whole question in one call, with nothing to search.

    shares: what must stay free beside it (kernels.spare), empty for nothing. explains: where it cannot come, the
    numbers are those of the plan without it; else they say nothing then.

    Returns (verdict, slot of who binds or NOBODY or ITSELF, seconds until prefills are done, peak blocks, number of
    residents, blocks that the plan may use).
    """
    newcomer = np.empty((1, ROWS))
    newcomer[0, REM] = rem
    newcomer[0, DUE] = due
    newcomer[0, PACE] = pace
    newcomer[0, CTX] = ctx
    newcomer[0, OUT] = out
    slots, state, order, rank, lines, caps, capacity = assemble(
        ints, floats, flags, used, now, free_blocks, model, margin, settings, floor, beside_hopeful, max_tokens,
        max_spec, newcomer,
    )  # fmt: skip
    n = len(slots)
    scratch, chunks, load = np.empty((ROWS, n + 1)), np.zeros(len(order)), np.empty(model.shape[0])
    verdict, bind, done, peak = check_set(
        state, state, order, 0, now, rank, lines, caps, max_tokens, max_requests, block_size, capacity, scratch, chunks,
        load,
    )  # fmt: skip
    # One that cannot be promised for itself is not asked what it leaves to others.
    state[REM, n] = ABSENT
    if verdict == FEASIBLE and len(shares) > 0 and n >= FEWEST:
        mean_kv, mean_prompt = means(state, slots, ints, floats)
        spares = spares_memory(
            ctx + rem + out, value * mean_kv, peak_blocks(state, rank, block_size), shares, block_size, capacity
        )
        if not spares or done > latest_done_s(
            rem, ctx, due - now, value * mean_prompt, lines, max_tokens, shares, load
        ):
            verdict = TOO_LARGE
    if verdict != FEASIBLE and explains:
        _verdict, _bind, done, peak = check_set(
            state, state, order, 0, now, rank, lines, caps, max_tokens, max_requests, block_size, capacity, scratch,
            chunks, load,
        )  # fmt: skip
    binds = NOBODY if bind < 0 else slots[bind] if bind < n else ITSELF
    return verdict, binds, done, peak, n, capacity


@kernel
def counted_on(
    slots: IntArray, state: FloatArray, floats: FloatArray, lines: FloatArray, caps: FloatArray, max_spec: int
) -> FloatArray:
    """Lines of steps that speculate; the state's paces become those of such steps.

    Newcomers, the columns past the residents', get the means of the residents' acceptance and share of drafts.
    """
    n, everybody = len(slots), state.shape[1]
    accept_rate, share = np.zeros(everybody), np.ones(everybody)
    for i in range(n):
        accept_rate[i] = floats[ACCEPT_RATE, slots[i]]
        share[i] = floats[DRAFT_SHARE, slots[i]]
    if n == 0 or not accept_rate.any():
        return lines
    accept_rate[n:] = accept_rate[:n].mean()
    share[n:] = share[:n].mean()
    together = state.copy()
    spec = np.ones(everybody, np.int64)
    now = np.ones(everybody, np.bool_)
    ahead = count_on(together, everybody, accept_rate, share, now, lines, caps.copy(), max_spec, spec)
    state[PACE] = together[PACE]
    return ahead
