"""What one more token each makes of many requests: the larger part of what most steps change in a table."""

from __future__ import annotations

import numpy as np

from scheduling.kernels.jit import kernel
from scheduling.request_table import (
    CONTEXT,
    GENERATED,
    KV_BLOCKS,
    MAX_REMAINING_OUTPUT,
    NEXT_DEADLINE,
    PREFILL_REMAINING,
    PROMPT,
    REMAINING_OUTPUT,
    TPOT,
    FloatArray,
    IntArray,
)

UNKNOWN: IntArray = np.zeros(0, np.int64)
"""In place of the blocks that requests hold, where that is not known yet."""


@kernel
def token_each(ints: IntArray, floats: FloatArray, slots: IntArray, kv_blocks: IntArray) -> IntArray:
    """Account for one more token of the request in each slot, none of them its stage's first; return their contexts.

    As RequestTable.tokens_out(slot, 1), which is too slow for every request of every step. kv_blocks: what each holds
    from now on, or UNKNOWN.
    """
    contexts = slots.copy()
    for i, slot in enumerate(slots):
        generated = ints[GENERATED, slot] + 1
        contexts[i] = ints[PROMPT, slot] + generated - 1
        ints[GENERATED, slot] = generated
        ints[CONTEXT, slot] = contexts[i]
        ints[PREFILL_REMAINING, slot] = 0
        ints[REMAINING_OUTPUT, slot] = max(ints[REMAINING_OUTPUT, slot] - 1, 1)
        ints[MAX_REMAINING_OUTPUT, slot] = max(ints[MAX_REMAINING_OUTPUT, slot] - 1, 1)
        floats[NEXT_DEADLINE, slot] += floats[TPOT, slot]
        if len(kv_blocks):
            ints[KV_BLOCKS, slot] = kv_blocks[i]
    return contexts
