"""Sarathi-Serve: stall-free batches: every decode in every step, prefill chunks in what is left of a token budget.

The budget is the largest batch whose time fits a target, the tightest TPOT, at the load of the moment; or a fixed
number of tokens, as the system is deployed with. Prompts are let in first come first served when memory holds the whole
prompt and a watermark; the request that came last is preempted when blocks run out.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from scheduling.kernels.jit import kernel
from scheduling.kernels.steptime import add_chunk, largest_chunk, start_load
from scheduling.policies.admit_all import AdmitAll
from scheduling.policies.residents import blocks_wanted, by_arrival, plan_of, serve_decodes
from scheduling.policy import BatchPlan, Policy
from scheduling.request_table import (
    CONTEXT,
    KV_BLOCKS,
    PREFILL_REMAINING,
    TPOT,
    BoolArray,
    FloatArray,
    IntArray,
    RequestTable,
)
from scheduling.routing import get as get_routing
from scheduling.time_model import TimeModel
from scheduling.types import EngineLimits

MAX_REQUESTS, WATERMARK = 256, 0.01
LEAST_CHUNK = 16
"""Tokens of prefill in a step even where the decodes alone take the whole target, so that prompts never starve."""


@kernel
def _plan(
    ints: IntArray,
    floats: FloatArray,
    flags: BoolArray,
    used: int,
    free: int,
    block: int,
    lines: FloatArray,
    target: float,
    budget: int,
    places: int,
    reserve: int,
    spec: int,
) -> tuple[IntArray, IntArray, IntArray, IntArray]:
    slots = by_arrival(ints, flags, used)
    n = len(slots)
    running = np.empty(n, np.int64)
    runs = 0
    for slot in slots:
        if ints[KV_BLOCKS, slot] > 0:
            running[runs] = slot
            runs += 1
    decodes = np.empty(n, np.int64)
    preempted = np.empty(n, np.int64)
    limit = min(places, max(1, budget // spec))
    count, evicted, free = serve_decodes(running[:runs], ints, free, block, spec, limit, decodes, preempted)
    left = budget - count * spec
    kv = 0.0
    for i in range(count):
        kv += ints[CONTEXT, decodes[i]]
    load = np.empty(lines.shape[0])
    start_load(lines, float(count * spec), kv, load)
    if target <= 0.0:
        target = np.inf
        for slot in slots:
            target = min(target, floats[TPOT, slot])
    prefills = np.empty(n, np.int64)
    chunks = np.empty(n, np.int64)
    chunked = 0
    placed = runs - evicted
    held = np.zeros(used, np.bool_)
    for i in range(evicted):
        held[preempted[i]] = True
    # Prompts that have begun go first: one that cannot begin for want of memory must not hold them up.
    queue = np.concatenate((running[:runs], slots))
    for place in range(runs + n):
        slot = queue[place]
        started = ints[KV_BLOCKS, slot] > 0
        remaining = ints[PREFILL_REMAINING, slot]
        if remaining == 0 or held[slot] or started != (place < runs):
            continue
        if left <= 0:
            break
        if not started:
            if evicted > 0 or placed >= places:
                break
            whole = blocks_wanted(ints, slot, remaining, block)
            if whole > free or (placed > 0 and free - whole < reserve):
                break
        chunk = int(largest_chunk(lines, load, target, float(ints[CONTEXT, slot]), float(min(remaining, left))))
        if chunked == 0:
            chunk = max(chunk, min(LEAST_CHUNK, remaining, left))
        if chunk <= 0:
            break
        want = blocks_wanted(ints, slot, chunk, block)
        if want > free:
            break
        add_chunk(lines, load, float(chunk), float(ints[CONTEXT, slot]))
        free -= want
        left -= chunk
        placed += not started
        prefills[chunked] = slot
        chunks[chunked] = chunk
        chunked += 1
    return decodes[:count], prefills[:chunked], chunks[:chunked], preempted[:evicted]


@dataclass(frozen=True, slots=True)
class SarathiBatches:
    """token_budget: fixed tokens per step, 0: only the time counts.

    target_s: time of a step to fit, 0: the tightest TPOT of the residents; ignored (infinite) when negative.
    """

    token_budget: int = 0
    target_s: float = 0.0
    max_requests: int = MAX_REQUESTS
    watermark: float = WATERMARK
    spec_tokens: int = 1

    def plan(
        self, now_s: float, table: RequestTable, free_blocks: int, model: TimeModel, limits: EngineLimits
    ) -> BatchPlan:
        """Plan one step."""
        spec = min(self.spec_tokens, limits.max_spec_tokens)
        budget = self.token_budget if self.token_budget > 0 else limits.max_batch_tokens
        decodes, prefills, chunks, preempted = _plan(
            table.ints,
            table.floats,
            table.flags,
            table.high_water,
            free_blocks,
            limits.block_size,
            model.array,
            np.inf if self.target_s < 0 else self.target_s,
            min(budget, limits.max_batch_tokens),
            min(self.max_requests, limits.max_batch_requests),
            int(self.watermark * limits.total_blocks),
            spec,
        )
        return plan_of(model.array, table.ints, decodes, spec, prefills, chunks, preempted)


def policy(
    token_budget: int = 0,
    target_s: float = 0.0,
    max_requests: int = MAX_REQUESTS,
    watermark: float = WATERMARK,
    spec_tokens: int = 1,
    routing: str = "round-robin",
) -> Policy:
    """Build the policy with these settings."""
    return Policy(
        name="sarathi",
        description="Sarathi-Serve: stall-free chunked prefill, steps that fit the tightest TPOT, no admission control",
        admission=AdmitAll(),
        batching=SarathiBatches(token_budget, target_s, max_requests, watermark, spec_tokens),
        routing=get_routing(routing),
        admits_all=True,
        repeats_decodes=True,
    )
