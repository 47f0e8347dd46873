"""What an engine does with the plan of one step: KV blocks, tokens, time. Compiled, over the columns of the table.

The engine follows the plan. Where the plan asks for more KV blocks than are free it leaves that request out of the
step, as an engine must, and counts it.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from scheduling.kernels.jit import kernel
from scheduling.kernels.steptime import PER_ATTENTION, PER_KV, PER_REQUEST, PER_SPEC, PER_TOKEN
from scheduling.request_table import (
    ANSWER_TPOT,
    CONTEXT,
    GENERATED,
    HOPEFUL,
    KV_BLOCKS,
    MAX_REMAINING_OUTPUT,
    NEXT_DEADLINE,
    PREEMPTIONS,
    PREFILL_DEADLINE,
    PREFILL_REMAINING,
    PROMPT,
    REMAINING_OUTPUT,
    STANDARD,
    TPOT,
    BoolArray,
    FloatArray,
    IntArray,
)
from scheduling.scoring import ROUNDING_S

SeedState = npt.NDArray[np.uint64]

ROW, LEFT, THINKING = 0, 1, 2
SIDE_ROWS = 3
"""Rows of the per-slot array beside the table: workload row, true output tokens left, output tokens until thinking
ends (0: none or over)."""

SHORTAGES, PREFILL_TOKENS, DECODES, REBUILT_TOKENS, NEW_TOKENS = 0, 1, 2, 3, 4
COUNTERS = 5


class Engine(NamedTuple):
    """What steps run on: constants, and arrays that they change.

    lines: true step times (scheduling.time_model). block: tokens. ints, floats, flags: columns of the table, side: the
    array beside it. emitted (2, capacity): slot and count of those that got tokens in the last step; finished: slots
    whose output is complete. late: by workload row, set when a token comes after it is due (strict).
    """

    lines: FloatArray
    block: int
    acceptance: float
    ints: IntArray
    floats: FloatArray
    flags: BoolArray
    side: IntArray
    seed: SeedState
    emitted: IntArray
    finished: IntArray
    late: BoolArray
    counters: IntArray


class Tokens(NamedTuple):
    """When tokens came, of all requests: times holds those of a workload row from offsets[row] on, produced[row]."""

    times: FloatArray
    offsets: IntArray
    produced: IntArray


@kernel
def execute(
    now: float,
    noise: float,
    free: int,
    engine: Engine,
    decode_slots: IntArray,
    spec_tokens: IntArray,
    prefill_slots: IntArray,
    prefill_tokens: IntArray,
    preempt_slots: IntArray,
    relegate_slots: IntArray,
) -> tuple[float, int, int, int]:
    """Run one step on the table; returns when it ends, tokens' slots, finished slots, and free blocks."""
    lines, block = engine.lines, engine.block
    ints, floats, flags, side = engine.ints, engine.floats, engine.flags, engine.side
    emitted, finished, late, counters = engine.emitted, engine.finished, engine.late, engine.counters
    for slot in relegate_slots:
        flags[STANDARD, slot] = False
        flags[HOPEFUL, slot] = False
    for slot in preempt_slots:
        free += ints[KV_BLOCKS, slot]
        ints[PREFILL_REMAINING, slot] = ints[PROMPT, slot] + ints[GENERATED, slot]
        ints[CONTEXT, slot] = 0
        ints[KV_BLOCKS, slot] = 0
        ints[PREEMPTIONS, slot] += 1

    tokens, requests, kv, attention, spec_steps = 0, 0, 0.0, 0.0, 0
    decode_runs = np.zeros(len(decode_slots), np.int64)
    for i in range(len(decode_slots)):
        slot = decode_slots[i]
        verified = max(spec_tokens[i], 1)
        if ints[PREFILL_REMAINING, slot] > 0:
            raise ValueError("the plan decodes a request that is still in prefill")
        need = (ints[CONTEXT, slot] + verified + block - 1) // block - ints[KV_BLOCKS, slot]
        if need > free:
            counters[SHORTAGES] += 1
            continue
        if need > 0:
            free -= need
            ints[KV_BLOCKS, slot] += need
        decode_runs[i] = verified
        tokens += verified
        requests += 1
        kv += ints[CONTEXT, slot]
        spec_steps = max(spec_steps, verified - 1)
        counters[DECODES] += 1
    chunk_runs = np.zeros(len(prefill_slots), np.int64)
    for i in range(len(prefill_slots)):
        slot = prefill_slots[i]
        chunk = min(prefill_tokens[i], ints[PREFILL_REMAINING, slot])
        context = ints[CONTEXT, slot]
        need = (context + chunk + block - 1) // block - ints[KV_BLOCKS, slot]
        if chunk <= 0 or need > free:
            counters[SHORTAGES] += chunk > 0
            continue
        if need > 0:
            free -= need
            ints[KV_BLOCKS, slot] += need
        chunk_runs[i] = chunk
        tokens += chunk
        requests += 1
        attention += chunk * (context + 0.5 * chunk)
        counters[PREFILL_TOKENS] += chunk
        if ints[PREEMPTIONS, slot] > 0:
            counters[REBUILT_TOKENS] += chunk
    if requests == 0:
        return now, 0, 0, free
    counters[NEW_TOKENS] += tokens

    duration = 0.0
    for j in range(lines.shape[0]):
        line = lines[j, 0] + lines[j, PER_TOKEN] * tokens + lines[j, PER_REQUEST] * requests
        line += lines[j, PER_KV] * kv + lines[j, PER_ATTENTION] * attention + lines[j, PER_SPEC] * spec_steps
        duration = max(duration, line)
    end = now + duration * noise

    emissions, done = 0, 0
    for i in range(len(decode_slots)):
        if decode_runs[i] == 0:
            continue
        slot = decode_slots[i]
        count = 1
        while count < decode_runs[i] and _uniform(engine.seed) < engine.acceptance:
            count += 1
        count = min(count, side[LEFT, slot])
        for _ in range(count):
            if end > floats[NEXT_DEADLINE, slot] + ROUNDING_S:
                late[side[ROW, slot]] = True
            _advance(ints, floats, side, slot)
        emitted[0, emissions] = slot
        emitted[1, emissions] = count
        emissions += 1
        if side[LEFT, slot] == 0:
            finished[done] = slot
            done += 1
    for i in range(len(prefill_slots)):
        if chunk_runs[i] == 0:
            continue
        slot = prefill_slots[i]
        ints[PREFILL_REMAINING, slot] -= chunk_runs[i]
        ints[CONTEXT, slot] += chunk_runs[i]
        if ints[PREFILL_REMAINING, slot] > 0:
            continue
        if ints[GENERATED, slot] == 0:
            if end > floats[PREFILL_DEADLINE, slot] + ROUNDING_S:
                late[side[ROW, slot]] = True
                flags[HOPEFUL, slot] = False
            floats[NEXT_DEADLINE, slot] = max(floats[PREFILL_DEADLINE, slot], end)
        elif end > floats[NEXT_DEADLINE, slot] + ROUNDING_S:
            late[side[ROW, slot]] = True
        _advance(ints, floats, side, slot)
        emitted[0, emissions] = slot
        emitted[1, emissions] = 1
        emissions += 1
        if side[LEFT, slot] == 0:
            finished[done] = slot
            done += 1
    return end, emissions, done, free


@kernel
def _advance(ints: IntArray, floats: FloatArray, side: IntArray, slot: int) -> None:
    """Account for one output token; RequestTable's first_token, tokens_out and thinking_ended in one."""
    ints[GENERATED, slot] += 1
    ints[CONTEXT, slot] = ints[PROMPT, slot] + ints[GENERATED, slot] - 1
    ints[REMAINING_OUTPUT, slot] = max(ints[REMAINING_OUTPUT, slot] - 1, 1)
    ints[MAX_REMAINING_OUTPUT, slot] = max(ints[MAX_REMAINING_OUTPUT, slot] - 1, 1)
    side[LEFT, slot] -= 1
    floats[NEXT_DEADLINE, slot] += floats[TPOT, slot]
    if side[THINKING, slot] > 0:
        side[THINKING, slot] -= 1
        if side[THINKING, slot] == 0:
            floats[NEXT_DEADLINE, slot] += floats[ANSWER_TPOT, slot] - floats[TPOT, slot]
            floats[TPOT, slot] = floats[ANSWER_TPOT, slot]


@kernel
def deliver(
    at: float, emitted: IntArray, rows: IntArray, times: FloatArray, offsets: IntArray, produced: IntArray
) -> None:
    """Write the time of every token of a step that ended: of these workload rows, emitted[1] each; see Tokens."""
    for i in range(len(rows)):
        row = rows[i]
        for _ in range(emitted[1, i]):
            times[offsets[row] + produced[row]] = at
            produced[row] += 1


@kernel
def _uniform(seed: SeedState) -> float:
    """Next number in [0, 1) of a splitmix64 stream."""
    seed[0] += np.uint64(0x9E3779B97F4A7C15)
    z = seed[0]
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return float((z ^ (z >> np.uint64(31))) >> np.uint64(11)) / 9007199254740992.0
