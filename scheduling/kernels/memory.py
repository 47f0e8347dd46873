"""KV blocks for the next batch: best-effort work is preempted first, then the hopeful, then the latest deadlines."""

from __future__ import annotations

import math

import numpy as np

from scheduling.kernels.jit import kernel
from scheduling.request_table import (
    ACTIVE,
    ARRIVAL,
    CONTEXT,
    GENERATED,
    HOPEFUL,
    KV_BLOCKS,
    NEXT_DEADLINE,
    PREFILL_DEADLINE,
    SEQUENCE,
    STANDARD,
    BoolArray,
    FloatArray,
    IntArray,
)


@kernel
def extra_blocks(ints: IntArray, slot: int, tokens: int, block_size: int) -> int:
    """Blocks that a request needs beyond those it holds to have this many more tokens resident."""
    return int(max(0, math.ceil((ints[CONTEXT, slot] + tokens) / block_size) - ints[KV_BLOCKS, slot]))


@kernel
def room_for_drafts(
    ints: IntArray, decode_slots: IntArray, decodes: int, spec_of: IntArray, free: int, block_size: int
) -> int:
    """Let decodes whose drafts find no memory verify none; returns the blocks that are left."""
    for k in range(decodes):
        slot = decode_slots[k]
        if spec_of[slot] > 1:
            more = extra_blocks(ints, slot, spec_of[slot], block_size) - extra_blocks(ints, slot, 1, block_size)
            if more > free:
                spec_of[slot] = 1
            else:
                free -= more
    return free


@kernel
def held_blocks(ints: IntArray, flags: BoolArray, used: int) -> int:
    """Blocks that resident requests hold."""
    held = 0
    for slot in range(used):
        if flags[ACTIVE, slot]:
            held += ints[KV_BLOCKS, slot]
    return held


@kernel
def unclaimed_blocks(ints: IntArray, flags: BoolArray, used: int) -> int:
    """Blocks of requests that are neither promised anything nor hopeful: anybody else may have them."""
    held = 0
    for slot in range(used):
        if flags[ACTIVE, slot] and not (flags[STANDARD, slot] or flags[HOPEFUL, slot]):
            held += ints[KV_BLOCKS, slot]
    return held


@kernel
def holds_memory(ints: IntArray, slot: int) -> bool:
    """Whether the request has a place among the engine's running ones."""
    return bool(ints[KV_BLOCKS, slot] > 0 or ints[CONTEXT, slot] > 0)


@kernel
def youngest_best_effort(
    ints: IntArray,
    floats: FloatArray,
    flags: BoolArray,
    used: int,
    claimed: BoolArray,
    preempted: BoolArray,
    promised_only: bool,
) -> int:
    """Slot of the request that arrived last and holds memory, of those without a claim; -1 when there is none.

    promised_only: only a promise is a claim; hopeful requests have none.
    """
    victim = -1
    for slot in range(used):
        if not flags[ACTIVE, slot] or preempted[slot] or not holds_memory(ints, slot):
            continue
        if claimed[slot] and (flags[STANDARD, slot] or not promised_only):
            continue
        if victim < 0 or (floats[ARRIVAL, slot], ints[SEQUENCE, slot]) > (
            floats[ARRIVAL, victim],
            ints[SEQUENCE, victim],
        ):
            victim = slot
    return victim


@kernel
def _take_out(
    victim: int,
    ints: IntArray,
    block_size: int,
    decode_slots: IntArray,
    decodes: int,
    prefill_slots: IntArray,
    prefill_tokens: IntArray,
    prefills: int,
) -> tuple[int, int, int]:
    """Take a slot out of the batch, wherever it is; returns (blocks that are not needed then, decodes, prefills)."""
    for k in range(decodes):
        if decode_slots[k] == victim:
            decode_slots[k : decodes - 1] = decode_slots[k + 1 : decodes].copy()
            return extra_blocks(ints, victim, 1, block_size), decodes - 1, prefills
    for k in range(prefills):
        if prefill_slots[k] == victim:
            spared = extra_blocks(ints, victim, prefill_tokens[k], block_size)
            prefill_slots[k : prefills - 1] = prefill_slots[k + 1 : prefills].copy()
            prefill_tokens[k : prefills - 1] = prefill_tokens[k + 1 : prefills].copy()
            return spared, decodes, prefills - 1
    return 0, decodes, prefills


@kernel
def make_room(
    ints: IntArray,
    floats: FloatArray,
    flags: BoolArray,
    used: int,
    claimed: BoolArray,
    free: int,
    block_size: int,
    max_requests: int,
    decode_slots: IntArray,
    decodes: int,
    prefill_slots: IntArray,
    prefill_tokens: IntArray,
    prefills: int,
    preempted: BoolArray,
) -> tuple[int, int, int]:
    """Return (free blocks after the batch, decodes, prefills); lists are narrowed in place where memory is short.

    claimed: slots that the batch was planned for, or that wait for the next one; hopeful ones give way to promises.
    """
    need = 0
    for k in range(decodes):
        need += extra_blocks(ints, decode_slots[k], 1, block_size)
    starts = 0
    for k in range(prefills):
        need += extra_blocks(ints, prefill_slots[k], prefill_tokens[k], block_size)
        starts += 0 if holds_memory(ints, prefill_slots[k]) else 1
    running = 0
    if starts > 0:
        for slot in range(used):
            if flags[ACTIVE, slot] and holds_memory(ints, slot):
                running += 1
    while need > free or running + starts > max_requests:
        victim = youngest_best_effort(ints, floats, flags, used, claimed, preempted, False)
        if victim < 0:
            victim = youngest_best_effort(ints, floats, flags, used, claimed, preempted, True)
        if victim < 0:
            break
        preempted[victim] = True
        free += ints[KV_BLOCKS, victim]
        running -= 1
        spared, decodes, prefills = _take_out(
            victim, ints, block_size, decode_slots, decodes, prefill_slots, prefill_tokens, prefills
        )
        need -= spared
    # Nobody without a promise is left to preempt: chunks are cut to the memory there is, or wait, the last one first.
    k = prefills - 1
    while k >= 0 and (need > free or running + starts > max_requests):
        slot = prefill_slots[k]
        chunk_need = extra_blocks(ints, slot, prefill_tokens[k], block_size)
        fits = (ints[KV_BLOCKS, slot] + max(0, free - (need - chunk_need))) * block_size - ints[CONTEXT, slot]
        started = holds_memory(ints, slot)
        need -= chunk_need
        if fits > 0 and (started or running + starts <= max_requests):
            prefill_tokens[k] = min(fits, prefill_tokens[k])
            need += extra_blocks(ints, slot, prefill_tokens[k], block_size)
        else:
            starts -= 0 if started else 1
            prefill_slots[k : prefills - 1] = prefill_slots[k + 1 : prefills].copy()
            prefill_tokens[k : prefills - 1] = prefill_tokens[k + 1 : prefills].copy()
            prefills -= 1
        k -= 1
    while need > free:
        victim = -1
        latest = -np.inf
        for slot in range(used):
            if flags[ACTIVE, slot] and not preempted[slot] and ints[KV_BLOCKS, slot] > 0:
                first = ints[GENERATED, slot] == 0
                due = floats[PREFILL_DEADLINE, slot] if first else floats[NEXT_DEADLINE, slot]
                if due > latest:
                    latest = due
                    victim = slot
        if victim < 0:
            break
        preempted[victim] = True
        free += ints[KV_BLOCKS, victim]
        spared, decodes, prefills = _take_out(
            victim, ints, block_size, decode_slots, decodes, prefill_slots, prefill_tokens, prefills
        )
        need -= spared
    return free - need, decodes, prefills
