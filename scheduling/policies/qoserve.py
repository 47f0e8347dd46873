"""QoServe (Niyama): chunks sized by the slack of the decodes, hybrid priority, eager relegation.

Every decode runs in every step. The step may last until the earliest deadline among the promised decodes; what time
is left after them goes to prompts, the lowest of deadline + alpha * remaining prefill first (alpha 0 is earliest
deadline first, large alpha shortest remaining first). A prompt that cannot meet its deadline any more, or, where the
option says so, not behind those before it, is relegated: it runs after all others. Prompts may overtake each other
between steps; the request that came last, relegated ones first, is preempted when blocks run out.
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
    GENERATED,
    KV_BLOCKS,
    NEXT_DEADLINE,
    PREFILL_DEADLINE,
    PREFILL_REMAINING,
    STANDARD,
    BoolArray,
    FloatArray,
    IntArray,
    RequestTable,
)
from scheduling.routing import get as get_routing
from scheduling.time_model import TimeModel
from scheduling.types import EngineLimits

ALPHA, MAX_CHUNK, LONGEST_S, MAX_REQUESTS, WATERMARK = 1.0, 4096, 0.2, 256, 0.01
LEAST_CHUNK = 16
"""Tokens of prefill in a step even where decodes are late already, so that prompts never starve."""


@kernel
def _plan(
    now: float,
    ints: IntArray,
    floats: FloatArray,
    flags: BoolArray,
    used: int,
    free: int,
    block: int,
    lines: FloatArray,
    alpha: float,
    max_chunk: int,
    longest: float,
    relegate_behind: bool,
    places: int,
    reserve: int,
    spec: int,
) -> tuple[IntArray, IntArray, IntArray, IntArray, IntArray]:
    slots = by_arrival(ints, flags, used)
    n = len(slots)
    relegated = np.empty(n, np.int64)
    demoted = 0
    promised = np.zeros(used, np.bool_)
    slope = 0.0
    for j in range(lines.shape[0]):
        slope = max(slope, lines[j, 1])
    # Running requests, promised ones first: the last ones are preempted first.
    running = np.empty(n, np.int64)
    runs = 0
    slack = longest
    for tier in range(2):
        for slot in slots:
            decoding = ints[PREFILL_REMAINING, slot] == 0
            if tier == 0:
                promised[slot] = flags[STANDARD, slot]
                if promised[slot] and decoding and floats[NEXT_DEADLINE, slot] < now:
                    promised[slot] = False
                    relegated[demoted] = slot
                    demoted += 1
                if promised[slot] and decoding:
                    slack = min(slack, floats[NEXT_DEADLINE, slot] - now)
            if ints[KV_BLOCKS, slot] > 0 and promised[slot] == (tier == 0):
                running[runs] = slot
                runs += 1
    decodes = np.empty(n, np.int64)
    preempted = np.empty(n, np.int64)
    count, evicted, free = serve_decodes(running[:runs], ints, free, block, spec, places, decodes, preempted)
    held = np.zeros(used, np.bool_)
    for i in range(evicted):
        held[preempted[i]] = True
    kv = 0.0
    for i in range(count):
        kv += ints[CONTEXT, decodes[i]]
    load = np.empty(lines.shape[0])
    base = start_load(lines, float(count * spec), kv, load)

    prompts = np.empty(n, np.int64)
    keys = np.empty(n)
    waiting = 0
    for slot in slots:
        remaining = ints[PREFILL_REMAINING, slot]
        if remaining == 0 or held[slot]:
            continue
        due = floats[PREFILL_DEADLINE, slot] if ints[GENERATED, slot] == 0 else floats[NEXT_DEADLINE, slot]
        if promised[slot] and now + base + slope * remaining > due:
            promised[slot] = False
            relegated[demoted] = slot
            demoted += 1
        prompts[waiting] = slot
        keys[waiting] = due + alpha * slope * remaining + (0.0 if promised[slot] else 1e9)
        waiting += 1
    order = np.argsort(keys[:waiting])
    if relegate_behind:
        step = max(slack, 1e-3)
        room = max(largest_chunk(lines, load, step, 0.0, float(max_chunk)), 1.0)
        ahead = 0.0
        for k in order:
            slot = prompts[k]
            if not promised[slot]:
                continue
            due = floats[PREFILL_DEADLINE, slot] if ints[GENERATED, slot] == 0 else floats[NEXT_DEADLINE, slot]
            work = float(ints[PREFILL_REMAINING, slot])
            if now + np.ceil((ahead + work) / room) * step > due and ahead > 0.0:
                promised[slot] = False
                relegated[demoted] = slot
                demoted += 1
                keys[k] += 1e9
            else:
                ahead += work
        order = np.argsort(keys[:waiting])

    prefills = np.empty(n, np.int64)
    chunks = np.empty(n, np.int64)
    chunked = 0
    left = max_chunk - count * spec
    placed = runs - evicted
    for k in order:
        slot = prompts[k]
        if left <= 0:
            break
        remaining = ints[PREFILL_REMAINING, slot]
        started = ints[KV_BLOCKS, slot] > 0
        if not started:
            whole = blocks_wanted(ints, slot, remaining, block)
            if evicted > 0 or placed >= places or whole > free or (placed > 0 and free - whole < reserve):
                continue
        chunk = int(largest_chunk(lines, load, slack, float(ints[CONTEXT, slot]), float(min(remaining, left))))
        if chunked == 0:
            chunk = max(chunk, min(LEAST_CHUNK, remaining, left))
        if chunk <= 0:
            break
        want = blocks_wanted(ints, slot, chunk, block)
        if want > free:
            continue
        add_chunk(lines, load, float(chunk), float(ints[CONTEXT, slot]))
        free -= want
        left -= chunk
        placed += not started
        prefills[chunked] = slot
        chunks[chunked] = chunk
        chunked += 1
    return decodes[:count], prefills[:chunked], chunks[:chunked], preempted[:evicted], relegated[:demoted]


@dataclass(frozen=True, slots=True)
class QoServeBatches:
    """alpha: weight of the remaining prefill, in times of computing it; longest_s: longest step without decodes.

    relegate_behind: also relegate a prompt that cannot be in time behind those that go before it.
    """

    alpha: float = ALPHA
    max_chunk: int = MAX_CHUNK
    longest_s: float = LONGEST_S
    relegate_behind: bool = False
    max_requests: int = MAX_REQUESTS
    watermark: float = WATERMARK
    spec_tokens: int = 1

    def plan(
        self, now_s: float, table: RequestTable, free_blocks: int, model: TimeModel, limits: EngineLimits
    ) -> BatchPlan:
        """Plan one step."""
        spec = min(self.spec_tokens, limits.max_spec_tokens)
        decodes, prefills, chunks, preempted, relegated = _plan(
            now_s,
            table.ints,
            table.floats,
            table.flags,
            table.high_water,
            free_blocks,
            limits.block_size,
            model.array,
            self.alpha,
            min(self.max_chunk, limits.max_batch_tokens),
            self.longest_s,
            self.relegate_behind,
            min(self.max_requests, limits.max_batch_requests),
            int(self.watermark * limits.total_blocks),
            spec,
        )
        return plan_of(model.array, table.ints, decodes, spec, prefills, chunks, preempted, relegated)


def policy(
    alpha: float = ALPHA,
    max_chunk: int = MAX_CHUNK,
    longest_s: float = LONGEST_S,
    relegate_behind: bool = False,
    max_requests: int = MAX_REQUESTS,
    watermark: float = WATERMARK,
    spec_tokens: int = 1,
    routing: str = "round-robin",
) -> Policy:
    """Build the policy with these settings."""
    return Policy(
        name="qoserve",
        description="QoServe (Niyama): chunks by decode slack, deadline + alpha * work, eager relegation",
        admission=AdmitAll(),
        batching=QoServeBatches(
            alpha, max_chunk, longest_s, bool(relegate_behind), max_requests, watermark, spec_tokens
        ),
        routing=get_routing(routing),
        admits_all=True,
        repeats_decodes=True,
    )
