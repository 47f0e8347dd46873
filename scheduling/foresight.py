"""A replica as it will stand when the step that it runs now has ended: from then on a new request can join.

Whoever plans from outside the engine sees it in the middle of a step. Planned from that moment, the step under way
would be counted as if it began anew and beside requests that cannot be in it, and decodes that are about to come as
missed.
"""

from __future__ import annotations

import numpy as np

from scheduling.kernels.decoded import UNKNOWN, token_each
from scheduling.policy import BatchPlan
from scheduling.request_table import RequestTable


def after_step(
    table: RequestTable, free_blocks: int, plan: BatchPlan, end_s: float, block: int
) -> tuple[RequestTable, int]:
    """Return a copy of the table, and the free blocks, once a planned step has ended at end_s.

    table may have lost and gained requests since the step was planned: slots that now hold others are the caller's to
    leave out of the plan. Every decode is counted on for one token, as the planner does; no request is expected to end.
    """
    after = table.copy()
    free = free_blocks
    for slot in plan.relegate_slots.tolist():
        after.relegate(slot)
    for slot in plan.preempt_slots.tolist():
        free += int(after.kv_blocks[slot])
        after.preempted(slot)
    decodes = plan.decode_slots
    for slot, chunk in zip(plan.prefill_slots.tolist(), plan.prefill_tokens.tolist(), strict=True):
        after.prefilled(slot, min(chunk, int(after.prefill_remaining[slot])))
        if after.prefill_remaining[slot] > 0:
            continue
        if after.generated[slot]:
            after.tokens_out(slot, 1)
        else:
            after.first_token(slot, end_s)
    token_each(after.ints, after.floats, decodes, UNKNOWN)
    moved = np.concatenate((decodes, plan.prefill_slots))
    needed = np.maximum(-(-after.context[moved] // block), after.kv_blocks[moved])
    free -= int((needed - after.kv_blocks[moved]).sum())
    after.kv_blocks[moved] = needed
    return after, max(free, 0)
