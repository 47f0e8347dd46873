"""The plan of one step: the batch of the promised and the hopeful, then what best-effort work fits beside it."""

from __future__ import annotations

import numpy as np

from scheduling.kernels.batches import CAP_AHEAD, CAP_IDLE, CAP_LONGEST, CAP_PACES, CAP_SHORTEST, CAPS
from scheduling.kernels.filler import batch_load, fill_best_effort
from scheduling.kernels.hopeful import join_hopeful, keep_hopeful
from scheduling.kernels.jit import kernel
from scheduling.kernels.memory import make_room, room_for_drafts, unclaimed_blocks
from scheduling.kernels.promised import COUNTED, EAGER, LAZY, LAZY_LONG, after_batch, choose_batch, keep_promised
from scheduling.kernels.rollout import FEASIBLE, feasible_from
from scheduling.kernels.rows import PACE, REM, ROWS, prefill_order
from scheduling.kernels.settings import (
    AHEAD_S,
    ALONE,
    BESIDE,
    FILLER_S,
    FILLER_STEPS,
    HOPEFUL_MEMORY,
    HOPEFUL_RATE,
    LONGEST_S,
    LONGEST_STEPS,
    LULL_S,
    PACES,
    SHORTEST_STEPS,
    TTFT_SHARE,
    TURN_EVERY_S,
    TURN_S,
)
from scheduling.kernels.speculation import speculate
from scheduling.kernels.steptime import duration
from scheduling.request_table import (
    ACTIVE,
    ARRIVAL,
    MAX_REMAINING_OUTPUT,
    NEXT_DEADLINE,
    PREFILL_DEADLINE,
    BoolArray,
    FloatArray,
    IntArray,
)

LITTLE_MEMORY, MUCH_MEMORY = 0.05, 0.25
"""Shares of memory: with no more than the first free, decodes run ahead as far as they can, and with the second free
beyond that no further than BatchSettings.ahead_s. Between, it grows as the square of what is missing."""


@kernel
def batch_caps(lines: FloatArray, settings: FloatArray) -> FloatArray:
    """Caps on batch durations for this engine: see kernels.batches."""
    caps = np.empty(CAPS)
    step = duration(lines, 1.0, 1.0, 0.0)
    caps[CAP_LONGEST] = max(settings[LONGEST_S], settings[LONGEST_STEPS] * step)
    caps[CAP_IDLE] = caps[CAP_LONGEST]
    caps[CAP_PACES] = settings[PACES]
    caps[CAP_SHORTEST] = settings[SHORTEST_STEPS] * step
    caps[CAP_AHEAD] = np.inf
    return caps


@kernel
def shortest_ttft(floats: FloatArray, flags: BoolArray, used: int) -> float:
    """Shortest TTFT among the resident requests, seconds: infinite without any."""
    shortest = np.inf
    for slot in range(used):
        if flags[ACTIVE, slot]:
            shortest = min(shortest, floats[PREFILL_DEADLINE, slot] - floats[ARRIVAL, slot])
    return float(shortest)


@kernel
def best_effort_s(
    time: float, now: float, lull: bool, filler_s: float, slots: IntArray, floats: FloatArray, settings: FloatArray
) -> float:
    """Seconds by which best-effort work may lengthen a batch of these slots that takes so much time.

    lull: no prompt waits and memory is free. See BatchSettings.beside and lull_s.
    """
    extra_s = 0.0
    if settings[TURN_EVERY_S] <= 0.0 or now % settings[TURN_EVERY_S] < settings[TURN_S]:
        extra_s = settings[BESIDE] * time
    if lull:
        for slot in slots:
            lull = lull and floats[NEXT_DEADLINE, slot] >= now + time + settings[LULL_S]
        if lull:
            extra_s = max(extra_s, filler_s)
    return extra_s


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
    max_spec: int,
) -> tuple[IntArray, IntArray, IntArray, IntArray, IntArray, IntArray, float]:
    """Return (decode slots, tokens to verify for each, prefill slots, their tokens, preempted, relegated, seconds)."""
    load = np.empty(lines.shape[0])
    caps = batch_caps(lines, settings)
    free_share = (free_blocks + unclaimed_blocks(ints, flags, used)) / total_blocks
    if free_share > LITTLE_MEMORY:
        caps[CAP_AHEAD] = settings[AHEAD_S] * max(1.0, MUCH_MEMORY / (free_share - LITTLE_MEMORY)) ** 2
    bare = lines / margin
    slots, state, missed = keep_promised(ints, floats, flags, used, now, bare, max_tokens, load)
    n = len(slots)
    relegated = np.zeros(used, np.bool_)
    for slot in missed:
        relegated[slot] = True
    hopeful, hopes, hopeless = keep_hopeful(ints, floats, flags, used, now, bare, max_tokens, load)
    for slot in hopeless:
        relegated[slot] = True
    if len(hopeful) > 0:
        everybody = np.concatenate((slots, hopeful))
        joint = np.concatenate((state, hopes), axis=1)
        _spec, counted, ahead, ahead_caps = speculate(everybody, joint, ints, floats, flags, lines, caps, max_spec)
        kept, judged = join_hopeful(
            everybody, joint.copy(), counted[PACE], ahead, n, ints, floats, flags, used, now, free_blocks, block_size,
            settings[HOPEFUL_MEMORY], settings[HOPEFUL_RATE], lines, caps, max_tokens, max_requests, load, relegated,
        )  # fmt: skip
        if not judged and max_spec > 1:
            kept, _judged = join_hopeful(
                everybody, counted.copy(), counted[PACE], ahead, n, ints, floats, flags, used, now, free_blocks,
                block_size, settings[HOPEFUL_MEMORY], settings[HOPEFUL_RATE], ahead, ahead_caps, max_tokens,
                max_requests, load, relegated,
            )  # fmt: skip
        slots = everybody[kept]
        state = np.empty((ROWS, len(kept)))
        for k in range(len(kept)):
            state[:, k] = joint[:, kept[k]]
        n = len(slots)
    order, m = prefill_order(state, n, 0)
    served = np.zeros(n, np.bool_)
    chunks = np.zeros(m)
    filler_s = max(settings[FILLER_S], settings[FILLER_STEPS] * duration(lines, 1.0, 1.0, 0.0))
    decode_slots = np.empty(used, np.int64)
    prefill_slots = np.empty(used, np.int64)
    prefill_tokens = np.empty(used, np.int64)
    preempted = np.zeros(used, np.bool_)
    decodes = 0
    prefills = 0
    spec_of = np.ones(used, np.int64)
    spec, counted, ahead, ahead_caps = speculate(slots, state, ints, floats, flags, lines, caps, max_spec)
    time, end, after, attempt = 0.0, now + filler_s, 0, EAGER
    if n > 0:
        time, end, after, attempt = choose_batch(
            slots, floats, state, counted, n, order, m, now, lines, ahead, margin, caps, ahead_caps,
            settings[TTFT_SHARE] * shortest_ttft(floats, flags, used), max_tokens, max_requests, spec, served, chunks,
            load, relegated,
        )  # fmt: skip
        for i in range(n):
            if served[i] and not relegated[slots[i]]:
                decode_slots[decodes] = slots[i]
                spec_of[slots[i]] = min(spec[i], ints[MAX_REMAINING_OUTPUT, slots[i]])
                decodes += 1
        for at in range(after):
            if chunks[at] > 0.0 and not relegated[slots[order[at]]]:
                prefill_slots[prefills] = slots[order[at]]
                prefill_tokens[prefills] = int(chunks[at])
                prefills += 1
    # Best-effort work may take the place of whoever has no claim.
    claimed = np.zeros(used, np.bool_)
    for slot in slots:
        claimed[slot] = not relegated[slot]
    if n > 0:
        for slot in hopeful:
            claimed[slot] = not relegated[slot]
    free, decodes, prefills = make_room(
        ints, floats, flags, used, claimed, free_blocks, block_size, int(max_requests),
        decode_slots, decodes, prefill_slots, prefill_tokens, prefills, preempted,
    )  # fmt: skip
    if decodes + prefills == 0 and n > 0:
        # The only chunk found no memory, and all decodes were far enough ahead to be left out of its batch.
        for i in range(n):
            if state[REM, i] == 0.0 and not (relegated[slots[i]] or preempted[slots[i]]):
                decode_slots[decodes] = slots[i]
                spec_of[slots[i]] = 1
                decodes += 1
        time = batch_load(ints, lines, decode_slots, decodes, prefill_slots, prefill_tokens, 0, spec_of, load)
        end = now + time
        free, decodes, prefills = make_room(
            ints, floats, flags, used, claimed, free, block_size, int(max_requests),
            decode_slots, decodes, prefill_slots, prefill_tokens, prefills, preempted,
        )  # fmt: skip
    free = room_for_drafts(ints, decode_slots, decodes, spec_of, free, block_size)
    # Best-effort work: all that fits before `limit`; if a promise would suffer from the longer batch, none.
    limit = now + (filler_s if n > 0 else settings[ALONE] * filler_s)
    spare = True
    if n > 0 and decodes + prefills > 0:
        lull = m == 0 and free_share > LITTLE_MEMORY + MUCH_MEMORY
        extra_s = best_effort_s(time, now, lull, filler_s, slots, floats, settings)
        limit = min(end, now + time + extra_s)
        spare = extra_s > 0.0 and attempt < LAZY_LONG and attempt % COUNTED < LAZY
    if spare:
        base_decodes, base_prefills = decodes, prefills
        decodes, prefills, longer = fill_best_effort(
            ints, floats, flags, used, claimed, now, limit, lines, settings, max_tokens, max_requests, free,
            block_size, total_blocks, decode_slots, decodes, prefill_slots, prefill_tokens, prefills, preempted,
            spec_of, n == 0 or decodes + prefills == 0,
        )  # fmt: skip
        if n > 0 and longer > time and decodes + prefills > base_decodes + base_prefills > 0:
            on_counted = attempt >= COUNTED
            trial, head = after_batch(
                counted if on_counted else state,
                n,
                order,
                after,
                served,
                chunks,
                state[PACE],
                spec,
            )
            verdict, _done, _bind = feasible_from(
                trial, n, order, head, m, now + longer, ahead if on_counted else lines,
                ahead_caps if on_counted else caps, max_tokens, max_requests,
                np.zeros(m), load,
            )  # fmt: skip
            if verdict != FEASIBLE:
                decodes, prefills = base_decodes, base_prefills
    time = batch_load(ints, lines, decode_slots, decodes, prefill_slots, prefill_tokens, prefills, spec_of, load)
    return (
        decode_slots[:decodes],
        spec_of[decode_slots[:decodes]],
        prefill_slots[:prefills],
        prefill_tokens[:prefills],
        np.flatnonzero(preempted),
        np.flatnonzero(relegated),
        time,
    )
