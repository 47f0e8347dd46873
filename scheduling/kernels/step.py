"""The plan of one step: which promised requests, then what best-effort work fits beside them.

Batches are tried from the most generous to the most careful; the first is taken from whose outcome the exact
simulation still finds every promise kept. So what admission found feasible stays feasible, whatever was done ahead.
"""

from __future__ import annotations

import numpy as np

from scheduling.kernels.batches import CAP_IDLE, CAP_LONGEST, CAP_PACES, CAP_SHORTEST, FORMED, commit_batch, form_batch
from scheduling.kernels.filler import fill_best_effort
from scheduling.kernels.jit import kernel
from scheduling.kernels.memory import make_room
from scheduling.kernels.rollout import FEASIBLE, feasible_from
from scheduling.kernels.rows import CTX, DUE, EPS, REM, gather, prefill_order
from scheduling.kernels.settings import FILLER_S, FILLER_STEPS, LONGEST_S, LONGEST_STEPS, PACES, SHORTEST_STEPS
from scheduling.kernels.shed import shed_latest
from scheduling.kernels.steptime import add_chunk, duration, start_load
from scheduling.request_table import ACTIVE, STANDARD, BoolArray, FloatArray, IntArray


@kernel
def batch_caps(lines: FloatArray, settings: FloatArray) -> FloatArray:
    """Caps on batch durations for this engine: see kernels.batches."""
    caps = np.empty(4)
    step = duration(lines, 1.0, 1.0, 0.0)
    caps[CAP_LONGEST] = max(settings[LONGEST_S], settings[LONGEST_STEPS] * step)
    caps[CAP_IDLE] = caps[CAP_LONGEST]
    caps[CAP_PACES] = settings[PACES]
    caps[CAP_SHORTEST] = settings[SHORTEST_STEPS] * step
    return caps


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
    slots = np.empty(used, np.int64)
    n = 0
    for slot in range(used):
        if flags[ACTIVE, slot] and flags[STANDARD, slot]:
            slots[n] = slot
            n += 1
    state = gather(slots[:n], ints, floats, 0)
    missed = np.empty(n, np.int64)
    lost = 0
    kept = 0
    for i in range(n):
        if now + alone_s(state[REM, i], state[CTX, i], bare, max_tokens, load) > state[DUE, i] + EPS:
            missed[lost] = slots[i]
            lost += 1
        else:
            slots[kept] = slots[i]
            state[:, kept] = state[:, i]
            kept += 1
    return slots[:kept], state[:, :kept].copy(), missed[:lost]


@kernel
def plan_step(
    ints: IntArray,
    floats: FloatArray,
    flags: BoolArray,
    used: int,
    now: float,
    free_blocks: int,
    lines: FloatArray,
    margin: float,
    settings: FloatArray,
    max_tokens: float,
    max_requests: float,
    block_size: int,
    total_blocks: int,
) -> tuple[IntArray, IntArray, IntArray, IntArray, IntArray, float]:
    """Return (decode slots, prefill slots, prefill tokens, preempted slots, relegated slots, predicted seconds)."""
    load = np.empty(lines.shape[0])
    caps = batch_caps(lines, settings)
    bare = lines / margin
    slots, state, missed = keep_promised(ints, floats, flags, used, now, bare, max_tokens, load)
    n = len(slots)
    relegated = np.zeros(used, np.bool_)
    for slot in missed:
        relegated[slot] = True
    order, m = prefill_order(state, n, 0)
    served = np.zeros(n, np.bool_)
    chunks = np.zeros(m)
    scratch_served = np.zeros(n, np.bool_)
    scratch_chunks = np.zeros(m)
    filler_s = max(settings[FILLER_S], settings[FILLER_STEPS] * duration(lines, 1.0, 1.0, 0.0))

    decode_slots = np.empty(used, np.int64)
    prefill_slots = np.empty(used, np.int64)
    prefill_tokens = np.empty(used, np.int64)
    preempted = np.zeros(used, np.bool_)
    decodes = 0
    prefills = 0
    time = 0.0
    end = now + filler_s
    after = 0
    chosen = n == 0
    spare = n == 0
    if n > 0:
        wide = caps.copy()
        wide[CAP_SHORTEST] = wide[CAP_LONGEST] = wide[CAP_IDLE] = np.inf
        for attempt in range(5):
            eager = attempt == 0 or attempt == 3
            use_lines = lines if attempt < 3 else bare
            use_caps = wide if attempt == 2 else caps
            outcome, time, end, after, _bind = form_batch(
                state, n, order, 0, m, now, eager, use_lines, use_caps, max_tokens, max_requests, served, chunks, load
            )
            if outcome != FORMED:
                continue
            trial = state.copy()
            head = commit_batch(trial, n, order, 0, after, served, chunks)
            verdict, _done, _bind = feasible_from(
                trial, n, order, head, m, now + time, use_lines, use_caps, max_tokens, max_requests,
                scratch_served, scratch_chunks, load,
            )  # fmt: skip
            if verdict == FEASIBLE:
                chosen = True
                spare = attempt == 0
                break
        if not chosen:
            after, time, end = shed_latest(
                slots, floats, state, n, order, m, now, bare, wide, max_tokens, max_requests,
                served, chunks, load, relegated,
            )  # fmt: skip
        for i in range(n):
            if served[i] and not relegated[slots[i]]:
                decode_slots[decodes] = slots[i]
                decodes += 1
        for at in range(after):
            if chunks[at] > 0.0 and not relegated[slots[order[at]]]:
                prefill_slots[prefills] = slots[order[at]]
                prefill_tokens[prefills] = int(chunks[at])
                prefills += 1
    free, decodes, prefills = make_room(
        ints, floats, flags, used, relegated, free_blocks, block_size, int(max_requests),
        decode_slots, decodes, prefill_slots, prefill_tokens, prefills, preempted,
    )  # fmt: skip
    # Best-effort work: all that fits before `end`; if a promise would suffer from the longer batch, none.
    limit = min(end, now + max(filler_s, time + 0.25 * filler_s)) if n > 0 else now + filler_s
    if spare or decodes + prefills == 0:
        base_decodes, base_prefills = decodes, prefills
        decodes, prefills, longer = fill_best_effort(
            ints, floats, flags, used, relegated, now, limit, lines, settings, max_tokens, max_requests, free,
            block_size, total_blocks, decode_slots, decodes, prefill_slots, prefill_tokens, prefills, preempted,
            n == 0 or decodes + prefills == 0,
        )  # fmt: skip
        if n > 0 and longer > time and decodes + prefills > base_decodes + base_prefills:
            trial = state.copy()
            head = commit_batch(trial, n, order, 0, after, served, chunks)
            verdict, _done, _bind = feasible_from(
                trial, n, order, head, m, now + longer, lines, caps, max_tokens, max_requests,
                scratch_served, scratch_chunks, load,
            )  # fmt: skip
            if verdict != FEASIBLE and base_decodes + base_prefills > 0:
                decodes, prefills, longer = base_decodes, base_prefills, time
        time = max(longer, time)
    return (
        decode_slots[:decodes],
        prefill_slots[:prefills],
        prefill_tokens[:prefills],
        np.flatnonzero(preempted),
        np.flatnonzero(relegated),
        time,
    )
