"""DistServe: prefill and decode on separate replicas, no SLO admission.

A prefill replica runs whole prompts, first come first served, as many as its token budget takes; a decode replica
decodes all it holds. The same batch policy serves both: whoever has prompts prefills, whoever has none decodes. How
many replicas prefill is the deployment's choice (the best of 1:1, 2:1 and 1:2 is reported); a decode replica that runs
out of blocks preempts the request that came last and recomputes it itself, and its decodes go on beside it.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from scheduling.kernels.jit import kernel
from scheduling.policies.admit_all import AdmitAll
from scheduling.policies.residents import blocks_wanted, by_arrival, plan_of, serve_decodes
from scheduling.policy import BatchPlan, Policy
from scheduling.request_table import KV_BLOCKS, PREFILL_REMAINING, BoolArray, IntArray, RequestTable
from scheduling.routing import get as get_routing
from scheduling.time_model import TimeModel
from scheduling.types import EngineLimits

TOKEN_BUDGET, MAX_REQUESTS = 2048, 512


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
    spec: int,
) -> tuple[IntArray, IntArray, IntArray, IntArray]:
    slots = by_arrival(ints, flags, used)
    n = len(slots)
    residents = np.empty(n, np.int64)
    runs = 0
    for slot in slots:
        if ints[KV_BLOCKS, slot] > 0:
            residents[runs] = slot
            runs += 1
    decodes = np.empty(n, np.int64)
    preempted = np.empty(n, np.int64)
    limit = min(places, max(1, engine_tokens // spec))
    count, evicted, free = serve_decodes(residents[:runs], ints, free, block, spec, limit, decodes, preempted)
    prefills = np.empty(n, np.int64)
    chunks = np.empty(n, np.int64)
    chunked = 0
    budget = min(budget, engine_tokens - count * spec)
    if evicted == 0:
        for slot in slots:
            remaining = ints[PREFILL_REMAINING, slot]
            if remaining == 0:
                continue
            want = blocks_wanted(ints, slot, remaining, block)
            if want > free or (remaining > budget and chunked > 0) or budget <= 0:
                break
            chunk = min(remaining, engine_tokens - count * spec)
            free -= want
            budget -= chunk
            prefills[chunked] = slot
            chunks[chunked] = chunk
            chunked += 1
            if chunk < remaining:
                break
    return decodes[:count], prefills[:chunked], chunks[:chunked], preempted[:evicted]


@dataclass(frozen=True, slots=True)
class DistServeBatches:
    """token_budget: prompt tokens in a prefill batch, beyond which only a single longer prompt goes."""

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
            limits.max_batch_tokens,
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
        name="distserve",
        description="DistServe: prefill and decode replicas apart, first come first served, no admission control",
        admission=AdmitAll(),
        batching=DistServeBatches(token_budget, max_requests, spec_tokens),
        routing=get_routing(routing),
        admits_all=True,
        repeats_decodes=True,
    )
