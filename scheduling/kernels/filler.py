"""Best-effort work beside a batch: first come first served, chunked, and started only where it will not thrash."""

from __future__ import annotations

import numpy as np

from scheduling.kernels.jit import kernel
from scheduling.kernels.memory import extra_blocks, holds_memory, youngest_best_effort
from scheduling.kernels.rows import EPS
from scheduling.kernels.settings import AGE_S, WATERMARK
from scheduling.kernels.steptime import add_chunk, add_decode, add_speculation, largest_chunk, start_load
from scheduling.request_table import (
    ACTIVE,
    ARRIVAL,
    CONTEXT,
    KV_BLOCKS,
    PREFILL_REMAINING,
    SEQUENCE,
    BoolArray,
    FloatArray,
    IntArray,
)

MAX_STARTS = 8
"""Best-effort requests started in one batch at most."""


@kernel
def batch_load(
    ints: IntArray,
    lines: FloatArray,
    decode_slots: IntArray,
    decodes: int,
    prefill_slots: IntArray,
    prefill_tokens: IntArray,
    prefills: int,
    spec_of: IntArray,
    load: FloatArray,
) -> float:
    """Duration of a batch given by its slots; leaves its line-wise load in `load`."""
    kv = 0.0
    drafts = 0
    deepest = 1
    for k in range(decodes):
        slot = decode_slots[k]
        kv += ints[CONTEXT, slot]
        drafts += spec_of[slot] - 1
        deepest = max(deepest, spec_of[slot])
    time = start_load(lines, float(decodes), kv, load)
    if drafts > 0:
        time = add_speculation(lines, load, float(drafts), deepest - 1.0)
    for k in range(prefills):
        time = add_chunk(lines, load, float(prefill_tokens[k]), float(ints[CONTEXT, prefill_slots[k]]))
    return time if decodes + prefills > 0 else 0.0


@kernel
def _best_effort_residents(
    ints: IntArray, floats: FloatArray, flags: BoolArray, used: int, claimed: BoolArray, preempted: BoolArray
) -> tuple[IntArray, int]:
    """Slots of best-effort requests that hold memory, first arrival first, and how many requests run in all."""
    found = np.empty(used, np.int64)
    n = 0
    running = 0
    for slot in range(used):
        if not flags[ACTIVE, slot] or preempted[slot] or not holds_memory(ints, slot):
            continue
        running += 1
        if claimed[slot]:
            continue
        at = n
        while at > 0 and _later(ints, floats, found[at - 1], slot):
            found[at] = found[at - 1]
            at -= 1
        found[at] = slot
        n += 1
    return found[:n], running


@kernel
def _later(ints: IntArray, floats: FloatArray, a: int, b: int) -> bool:
    """Whether request a arrived after request b."""
    if floats[ARRIVAL, a] != floats[ARRIVAL, b]:
        return bool(floats[ARRIVAL, a] > floats[ARRIVAL, b])
    return bool(ints[SEQUENCE, a] > ints[SEQUENCE, b])


@kernel
def fill_best_effort(
    ints: IntArray,
    floats: FloatArray,
    flags: BoolArray,
    used: int,
    claimed: BoolArray,
    now: float,
    limit: float,
    lines: FloatArray,
    settings: FloatArray,
    max_tokens: float,
    max_requests: float,
    free: int,
    block_size: int,
    total_blocks: int,
    decode_slots: IntArray,
    decodes: int,
    prefill_slots: IntArray,
    prefill_tokens: IntArray,
    prefills: int,
    preempted: BoolArray,
    spec_of: IntArray,
    must: bool,
) -> tuple[int, int, float]:
    """Append best-effort decodes, then chunks, while the batch ends by `limit`; returns (decodes, prefills, duration).

    must: nothing else runs, so one request goes on even when its step is longer than the limit.
    """
    load = np.empty(lines.shape[0])
    time = batch_load(ints, lines, decode_slots, decodes, prefill_slots, prefill_tokens, prefills, spec_of, load)
    room = max_tokens
    for k in range(decodes):
        room -= spec_of[decode_slots[k]]
    for k in range(prefills):
        room -= prefill_tokens[k]
    requests = float(decodes + prefills)
    residents, running = _best_effort_residents(ints, floats, flags, used, claimed, preempted)
    trial = np.empty(lines.shape[0])
    for slot in residents:
        if ints[PREFILL_REMAINING, slot] > 0 or preempted[slot]:
            continue
        if room < 1.0 or requests >= max_requests:
            break
        trial[:] = load
        longer = add_decode(lines, trial, 1.0, float(ints[CONTEXT, slot]))
        if now + longer > limit + EPS and not (must and requests == 0.0):
            break
        need = extra_blocks(ints, slot, 1, block_size)
        while need > free:
            victim = youngest_best_effort(ints, floats, flags, used, claimed, preempted, False)
            if victim < 0 or victim == slot or not _later(ints, floats, victim, slot):
                break
            preempted[victim] = True
            running -= 1
            free += ints[KV_BLOCKS, victim]
        if need > free:
            if must and requests == 0.0 and running == 1:
                preempted[slot] = True
            continue
        load[:] = trial
        time = longer
        free -= need
        room -= 1.0
        requests += 1.0
        decode_slots[decodes] = slot
        decodes += 1
    for slot in residents:
        if ints[PREFILL_REMAINING, slot] == 0 or preempted[slot]:
            continue
        chunk = _chunk(ints, slot, lines, load, now, limit, room, free, block_size, must and requests == 0.0)
        if chunk < 1 or requests >= max_requests:
            continue
        time = add_chunk(lines, load, float(chunk), float(ints[CONTEXT, slot]))
        free -= extra_blocks(ints, slot, chunk, block_size)
        room -= chunk
        requests += 1.0
        prefill_slots[prefills] = slot
        prefill_tokens[prefills] = chunk
        prefills += 1
    started = np.zeros(used, np.bool_)
    for _ in range(MAX_STARTS):
        if room < 1.0 or requests >= max_requests or running >= max_requests:
            break
        slot = -1
        for other in range(used):
            waits = flags[ACTIVE, other] and not claimed[other]
            waits = waits and not (holds_memory(ints, other) or preempted[other] or started[other])
            if waits and (slot < 0 or _later(ints, floats, slot, other)):
                slot = other
        if slot < 0:
            break
        need = extra_blocks(ints, slot, ints[PREFILL_REMAINING, slot] + 1, block_size)
        kept_free = settings[WATERMARK] * total_blocks
        if settings[AGE_S] > 0.0:
            kept_free *= max(0.0, 1.0 - (now - floats[ARRIVAL, slot]) / settings[AGE_S])
        if free - need < kept_free and not (running == 0 and need <= free):
            break
        chunk = _chunk(ints, slot, lines, load, now, limit, room, free, block_size, must and requests == 0.0)
        if chunk < 1:
            break
        time = add_chunk(lines, load, float(chunk), float(ints[CONTEXT, slot]))
        # The whole prompt's blocks are spoken for, so that two starts do not share them.
        free -= need
        room -= chunk
        requests += 1.0
        running += 1
        started[slot] = True
        prefill_slots[prefills] = slot
        prefill_tokens[prefills] = chunk
        prefills += 1
    return decodes, prefills, time


@kernel
def _chunk(
    ints: IntArray,
    slot: int,
    lines: FloatArray,
    load: FloatArray,
    now: float,
    limit: float,
    room: float,
    free: int,
    block_size: int,
    must: bool,
) -> int:
    """Chunk of a best-effort prefill: what time, tokens and blocks leave."""
    most = min(room, float(ints[PREFILL_REMAINING, slot]))
    most = min(most, float((ints[KV_BLOCKS, slot] + free) * block_size - ints[CONTEXT, slot]))
    if most < 1.0:
        return 0
    chunk = largest_chunk(lines, load, limit - now, float(ints[CONTEXT, slot]), most)
    if chunk < 1.0 and must:
        chunk = min(most, 128.0)
    return int(chunk)
