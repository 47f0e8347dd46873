"""Today's vLLM (V1 scheduler): running requests first, chunked prefill, one token budget per step, no SLOs.

Running requests are served in the order they came, each decode one token, a prefill what the budget leaves; then
waiting requests are let in, first come first served, while budget, places and KV blocks last. When a running request
finds no block, the one that came last is preempted and starts over.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from scheduling.kernels.jit import kernel
from scheduling.policies.admit_all import AdmitAll
from scheduling.policies.residents import blocks_wanted, by_arrival, plan_of
from scheduling.policy import BatchPlan, Policy
from scheduling.request_table import KV_BLOCKS, PREFILL_REMAINING, BoolArray, IntArray, RequestTable
from scheduling.routing import get as get_routing
from scheduling.time_model import TimeModel
from scheduling.types import EngineLimits

TOKEN_BUDGET, MAX_REQUESTS = 2048, 256


@kernel
def _plan(
    ints: IntArray, flags: BoolArray, used: int, free: int, block: int, budget: int, places: int, spec: int
) -> tuple[IntArray, IntArray, IntArray, IntArray]:
    slots = by_arrival(ints, flags, used)
    n = len(slots)
    running = np.empty(n, np.int64)
    waiting = np.empty(n, np.int64)
    runs, waits = 0, 0
    for slot in slots:
        if ints[KV_BLOCKS, slot] > 0:
            running[runs] = slot
            runs += 1
        else:
            waiting[waits] = slot
            waits += 1
    decodes = np.empty(n, np.int64)
    prefills = np.empty(n, np.int64)
    chunks = np.empty(n, np.int64)
    preempted = np.empty(n, np.int64)
    count, chunked, evicted = 0, 0, 0
    at, last = 0, runs
    while at < last and budget > 0 and at < places:
        slot = running[at]
        at += 1
        remaining = ints[PREFILL_REMAINING, slot]
        tokens = min(remaining, budget) if remaining > 0 else min(spec, budget)
        want = blocks_wanted(ints, slot, tokens, block)
        while want > free and last > at:
            last -= 1
            free += ints[KV_BLOCKS, running[last]]
            preempted[evicted] = running[last]
            evicted += 1
        if want > free:
            if at > 1:
                preempted[evicted] = slot
                evicted += 1
            break
        free -= want
        budget -= tokens
        if remaining > 0:
            prefills[chunked] = slot
            chunks[chunked] = tokens
            chunked += 1
        else:
            decodes[count] = slot
            count += 1
    if evicted == 0:
        placed = runs
        for i in range(waits):
            if budget <= 0 or placed >= places:
                break
            slot = waiting[i]
            chunk = min(ints[PREFILL_REMAINING, slot], budget)
            want = blocks_wanted(ints, slot, chunk, block)
            if want > free:
                break
            free -= want
            budget -= chunk
            placed += 1
            prefills[chunked] = slot
            chunks[chunked] = chunk
            chunked += 1
    return decodes[:count], prefills[:chunked], chunks[:chunked], preempted[:evicted]


@dataclass(frozen=True, slots=True)
class VllmV1Batches:
    """token_budget: vLLM's max_num_batched_tokens; max_requests: its max_num_seqs; spec_tokens: verified per decode."""

    token_budget: int = TOKEN_BUDGET
    max_requests: int = MAX_REQUESTS
    spec_tokens: int = 1

    def plan(
        self, now_s: float, table: RequestTable, free_blocks: int, model: TimeModel, limits: EngineLimits
    ) -> BatchPlan:
        """Plan one step."""
        spec = min(self.spec_tokens, limits.max_spec_tokens)
        decodes, prefills, chunks, preempted = _plan(
            table.ints,
            table.flags,
            table.high_water,
            free_blocks,
            limits.block_size,
            min(self.token_budget, limits.max_batch_tokens),
            min(self.max_requests, limits.max_batch_requests),
            spec,
        )
        return plan_of(model.array, table.ints, decodes, spec, prefills, chunks, preempted)


def policy(
    token_budget: int = TOKEN_BUDGET,
    max_requests: int = MAX_REQUESTS,
    spec_tokens: int = 1,
    routing: str = "round-robin",
) -> Policy:
    """Build the policy with these settings."""
    return Policy(
        name="vllm-v1",
        description="today's vLLM: decode first, chunked prefill, fixed token budget, no admission control",
        admission=AdmitAll(),
        batching=VllmV1Batches(token_budget, max_requests, spec_tokens),
        routing=get_routing(routing),
        admits_all=True,
        repeats_decodes=True,
    )
