"""What the baseline policies share: who is resident in which order, KV blocks, and the predicted time of a plan."""

from __future__ import annotations

import numpy as np

from scheduling.kernels.jit import kernel
from scheduling.kernels.steptime import PER_ATTENTION, PER_KV, PER_REQUEST, PER_SPEC, PER_TOKEN
from scheduling.policy import BatchPlan
from scheduling.request_table import (
    ACTIVE,
    CONTEXT,
    KV_BLOCKS,
    PREFILL_REMAINING,
    SEQUENCE,
    BoolArray,
    FloatArray,
    IntArray,
)

EMPTY: IntArray = np.empty(0, np.int64)


@kernel
def by_arrival(ints: IntArray, flags: BoolArray, used: int) -> IntArray:
    """Active slots, first come first."""
    slots = np.empty(used, np.int64)
    n = 0
    for slot in range(used):
        if flags[ACTIVE, slot]:
            slots[n] = slot
            n += 1
    keys = np.empty(n, np.int64)
    for i in range(n):
        keys[i] = ints[SEQUENCE, slots[i]]
    return slots[:n][np.argsort(keys)]


@kernel
def blocks_wanted(ints: IntArray, slot: int, tokens: int, block: int) -> int:
    """KV blocks that a request lacks for this many more tokens."""
    wanted: int = max(0, (ints[CONTEXT, slot] + tokens + block - 1) // block - ints[KV_BLOCKS, slot])
    return wanted


@kernel
def serve_decodes(
    slots: IntArray,
    ints: IntArray,
    free: int,
    block: int,
    tokens: int,
    limit: int,
    decodes: IntArray,
    preempted: IntArray,
) -> tuple[int, int, int]:
    """Every decode gets its token, in order; when blocks run out the last residents are preempted, as vLLM does.

    slots: residents in order, the last to be preempted first. Returns counts of decodes and of preempted, and what
    is left of the free blocks.
    """
    count, evicted = 0, 0
    last = len(slots)
    at = 0
    while at < last and count < limit:
        slot = slots[at]
        at += 1
        if ints[PREFILL_REMAINING, slot] > 0:
            continue
        want = blocks_wanted(ints, slot, tokens, block)
        while want > free and last > at:
            last -= 1
            if ints[KV_BLOCKS, slots[last]] > 0:
                free += ints[KV_BLOCKS, slots[last]]
                preempted[evicted] = slots[last]
                evicted += 1
        if want > free:
            if count == 0 and evicted == 0 and len(slots) == 1:
                break
            free += ints[KV_BLOCKS, slot]
            preempted[evicted] = slot
            evicted += 1
            break
        free -= want
        decodes[count] = slot
        count += 1
    return count, evicted, free


@kernel
def predicted_s(
    lines: FloatArray, ints: IntArray, decodes: IntArray, spec: int, prefills: IntArray, chunks: IntArray
) -> float:
    """Predicted duration of a batch: every decode verifies `spec` tokens, every prefill computes its chunk."""
    tokens, kv, attention = 0.0, 0.0, 0.0
    for slot in decodes:
        tokens += spec
        kv += ints[CONTEXT, slot]
    for i in range(len(prefills)):
        tokens += chunks[i]
        attention += chunks[i] * (ints[CONTEXT, prefills[i]] + 0.5 * chunks[i])
    requests = len(decodes) + len(prefills)
    steps = spec - 1 if len(decodes) > 0 else 0
    worst = 0.0
    for j in range(lines.shape[0]):
        time = lines[j, 0] + lines[j, PER_TOKEN] * tokens + lines[j, PER_REQUEST] * requests
        time += lines[j, PER_KV] * kv + lines[j, PER_ATTENTION] * attention + lines[j, PER_SPEC] * steps
        worst = max(worst, time)
    return worst


def plan_of(
    lines: FloatArray,
    ints: IntArray,
    decodes: IntArray,
    spec: int,
    prefills: IntArray,
    chunks: IntArray,
    preempted: IntArray,
    relegated: IntArray = EMPTY,
) -> BatchPlan:
    """The plan with its predicted duration."""
    return BatchPlan(
        decode_slots=decodes,
        spec_tokens=np.full(len(decodes), spec, np.int64),
        prefill_slots=prefills,
        prefill_tokens=chunks,
        preempt_slots=preempted,
        relegate_slots=relegated,
        predicted_s=predicted_s(lines, ints, decodes, spec, prefills, chunks),
    )
