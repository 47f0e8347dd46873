"""Many engine steps in a row that only decode, the same requests each time: one call in place of one event per step.

Policies that say so (`repeats_decodes`) would plan each of these steps alike. The run ends with the first step after
which anything may change: a request finished, became overdue or would find no KV block, or the step outlasts the next
event of the cluster. Every number is the same as with single steps.
"""

from __future__ import annotations

import numpy as np

from scheduling.kernels.jit import kernel
from scheduling.request_table import CONTEXT, KV_BLOCKS, NEXT_DEADLINE, IntArray
from simulation.engine_step import ROW, Engine, Tokens, deliver, execute


@kernel
def execute_decodes(
    now: float,
    until: float,
    free: int,
    engine: Engine,
    tokens: Tokens,
    decode_slots: IntArray,
    spec_tokens: IntArray,
) -> tuple[float, float, int, int, int, int]:
    """Steps from now on; the tokens of all but the last are delivered.

    Returns start and end of the last step, the count of steps, and as `execute` the last step's tokens' slots,
    finished slots, and free blocks.
    """
    ints, floats = engine.ints, engine.floats
    nothing = np.empty(0, np.int64)
    overdue = np.empty(len(decode_slots), np.bool_)
    steps = 0
    while True:
        for i in range(len(decode_slots)):
            overdue[i] = floats[NEXT_DEADLINE, decode_slots[i]] < now
        end, emissions, done, free = execute(
            now, 1.0, free, engine, decode_slots, spec_tokens, nothing, nothing, nothing, nothing
        )
        steps += 1
        if done > 0 or end >= until or end <= now:
            break
        wanted = 0
        changed = False
        for i in range(len(decode_slots)):
            slot = decode_slots[i]
            changed |= floats[NEXT_DEADLINE, slot] < end and not overdue[i]
            blocks = (ints[CONTEXT, slot] + max(spec_tokens[i], 1) + engine.block - 1) // engine.block
            wanted += max(0, blocks - ints[KV_BLOCKS, slot])
        if changed or wanted > free:
            break
        rows = engine.side[ROW][engine.emitted[0, :emissions]]
        deliver(end, engine.emitted, rows, tokens.times, tokens.offsets, tokens.produced)
        now = end
    return now, end, steps, emissions, done, free
