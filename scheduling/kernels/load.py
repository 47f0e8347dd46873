"""How busy a replica is, in one pass over its table: what routing compares."""

from __future__ import annotations

import numpy as np

from scheduling.kernels.jit import kernel
from scheduling.kernels.steptime import CONST, PER_ATTENTION, PER_KV, PER_REQUEST, PER_TOKEN
from scheduling.request_table import (
    ACTIVE,
    CONTEXT,
    KV_BLOCKS,
    PREFILL_REMAINING,
    STANDARD,
    TPOT,
    BoolArray,
    FloatArray,
    IntArray,
)


@kernel
def replica_load(
    ints: IntArray, floats: FloatArray, flags: BoolArray, used: int, lines: FloatArray
) -> tuple[float, float, float, float]:
    """Return (backlog seconds, decode share, tightest TPOT, promised requests) of the promised work.

    backlog: time the promised prefills take; decode share: part of the time that the promised decodes take when every
    batch lasts as long as the tightest TPOT. The tightest TPOT is infinite when nothing was promised.
    """
    tokens, attention, starts, decodes_rate, kv_rate, count = 0.0, 0.0, 0.0, 0.0, 0.0, 0.0
    tightest = np.inf
    for slot in range(used):
        if not (flags[ACTIVE, slot] and flags[STANDARD, slot]):
            continue
        count += 1.0
        pace = floats[TPOT, slot]
        tightest = min(tightest, pace)
        remaining = float(ints[PREFILL_REMAINING, slot])
        context = float(ints[CONTEXT, slot])
        tokens += remaining
        attention += remaining * (context + 0.5 * remaining)
        starts += 1.0 if remaining > 0.0 else 0.0
        decodes_rate += 1.0 / pace
        kv_rate += (context + remaining) / pace
    backlog = 0.0
    share = 0.0
    for j in range(lines.shape[0]):
        work = lines[j, PER_TOKEN] * tokens + lines[j, PER_ATTENTION] * attention + lines[j, PER_REQUEST] * starts
        backlog = max(backlog, work)
        if count > 0.0:
            busy = lines[j, CONST] / tightest
            busy += (lines[j, PER_TOKEN] + lines[j, PER_REQUEST]) * decodes_rate + lines[j, PER_KV] * kv_rate
            share = max(share, busy)
    return backlog, share, tightest, count


@kernel
def best_effort_blocks(ints: IntArray, flags: BoolArray, used: int) -> int:
    """Blocks that best-effort requests hold: they can be preempted."""
    blocks = 0
    for slot in range(used):
        if flags[ACTIVE, slot] and not flags[STANDARD, slot]:
            blocks += ints[KV_BLOCKS, slot]
    return blocks
