"""vLLM as of early 2024: prefill first, first come first served, whole prompts, no SLOs.

While a waiting prompt fits memory, the step is a batch of whole waiting prompts and every decode stands still;
otherwise all running requests decode. When blocks run out the request that came last is preempted and recomputed. A
share of the blocks (the watermark) stays free when prompts are let in.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from scheduling.kernels.jit import kernel
from scheduling.policies.admit_all import AdmitAll
from scheduling.policies.residents import blocks_wanted, by_arrival, plan_of, serve_decodes
from scheduling.policy import BatchPlan, Policy
from scheduling.request_table import (
    KV_BLOCKS,
    PREFILL_REMAINING,
    BoolArray,
    IntArray,
    RequestTable,
)
from scheduling.routing import get as get_routing
from scheduling.time_model import TimeModel
from scheduling.types import EngineLimits

TOKEN_BUDGET, MAX_REQUESTS, WATERMARK = 4096, 256, 0.01


@kernel
def _plan(
    ints: IntArray,
    flags: BoolArray,
    used: int,
    free: int,
    block: int,
    budget: int,
    engine_tokens: int,
    places: int,
    reserve: int,
    spec: int,
) -> tuple[IntArray, IntArray, IntArray, IntArray]:
    slots = by_arrival(ints, flags, used)
    n = len(slots)
    prefills = np.empty(n, np.int64)
    chunks = np.empty(n, np.int64)
    decodes = np.empty(n, np.int64)
    preempted = np.empty(n, np.int64)
    residents = np.empty(n, np.int64)
    running = 0
    for slot in slots:
        if ints[KV_BLOCKS, slot] > 0:
            residents[running] = slot
            running += 1
    chunked, left = 0, free
    # Prompts that have begun go first: one that cannot begin for want of memory must not hold them up.
    queue = np.concatenate((residents[:running], slots))
    for place in range(running + n):
        slot = queue[place]
        started = ints[KV_BLOCKS, slot] > 0
        remaining = ints[PREFILL_REMAINING, slot]
        if remaining == 0 or started != (place < running):
            continue
        if not started and running + chunked >= places:
            break
        want = blocks_wanted(ints, slot, remaining, block)
        if want > left or (not started and running > 0 and left - want < reserve):
            break
        if remaining > engine_tokens:
            # Longer than one engine step: alone, in pieces as large as the engine takes.
            if chunked == 0:
                prefills[0] = slot
                chunks[0] = engine_tokens
                chunked = 1
            break
        if remaining > budget and chunked > 0:
            break
        left -= want
        budget -= remaining
        prefills[chunked] = slot
        chunks[chunked] = remaining
        chunked += 1
    if chunked > 0:
        return decodes[:0], prefills[:chunked], chunks[:chunked], preempted[:0]
    served, evicted, free = serve_decodes(residents[:running], ints, free, block, spec, places, decodes, preempted)
    return decodes[:served], prefills[:0], chunks[:0], preempted[:evicted]


@dataclass(frozen=True, slots=True)
class Vllm2024Batches:
    """token_budget: max_num_batched_tokens, never below one prompt; watermark: share of blocks kept free."""

    token_budget: int = TOKEN_BUDGET
    max_requests: int = MAX_REQUESTS
    watermark: float = WATERMARK
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
            limits.max_batch_tokens,
            min(self.max_requests, limits.max_batch_requests),
            int(self.watermark * limits.total_blocks),
            spec,
        )
        return plan_of(model.array, table.ints, decodes, spec, prefills, chunks, preempted)


def policy(
    token_budget: int = TOKEN_BUDGET,
    max_requests: int = MAX_REQUESTS,
    watermark: float = WATERMARK,
    spec_tokens: int = 1,
    routing: str = "round-robin",
) -> Policy:
    """Build the policy with these settings."""
    return Policy(
        name="vllm",
        description="vLLM of early 2024: prefill first, first come first served, no chunking, no admission control",
        admission=AdmitAll(),
        batching=Vllm2024Batches(token_budget, max_requests, watermark, spec_tokens),
        routing=get_routing(routing),
        admits_all=True,
        repeats_decodes=True,
    )
