"""Batch policies that no one would want, to show that the step scheduler runs whatever is planned."""

from __future__ import annotations

import random
from dataclasses import dataclass, replace

import numpy as np

from scheduling import registry
from scheduling.policy import BatchPlan, BatchPolicy
from scheduling.request_table import RequestTable
from scheduling.time_model import BatchShape, TimeModel
from scheduling.types import EngineLimits

CHUNK_SIZES = (7, 64, 33, 1, 128, 19)
NONE = np.zeros(0, dtype=np.int64)


def ints(values: list[int]) -> np.ndarray:
    """Array as plans hold them."""
    return np.array(values, dtype=np.int64)


def empty() -> BatchPlan:
    """Plan of nothing."""
    return BatchPlan(NONE, NONE, NONE, NONE, NONE, NONE, 0.001)


@dataclass(slots=True)
class OddChunks:
    """Newest prefills first, each in chunks of its own odd size; decodes take turns, half of them per step."""

    step: int = 0

    def plan(
        self, now_s: float, table: RequestTable, free_blocks: int, model: TimeModel, limits: EngineLimits
    ) -> BatchPlan:
        """Plan one step."""
        self.step += 1
        slots = table.slots().tolist()
        decodes = [s for s in slots if table.prefill_remaining[s] == 0]
        if len(decodes) > 1:
            decodes = [s for place, s in enumerate(decodes) if place % 2 == self.step % 2]
        budget = limits.max_batch_tokens - len(decodes)
        prefills, chunks = [], []
        resident = int((table.kv_blocks[slots] > 0).sum())
        for slot in reversed([s for s in slots if table.prefill_remaining[s] > 0]):
            size = CHUNK_SIZES[int(table.sequence[slot]) % len(CHUNK_SIZES)]
            chunk = min(size, int(table.prefill_remaining[slot]), budget)
            if table.kv_blocks[slot] == 0:
                if resident >= limits.max_batch_requests:
                    continue
                resident += 1
            if chunk > 0:
                prefills.append(slot)
                chunks.append(chunk)
                budget -= chunk
        if not decodes and not prefills:
            return empty()
        spec = ints([limits.max_spec_tokens if s % 2 else 1 for s in decodes])
        shape = BatchShape(len(decodes) + sum(chunks), len(decodes) + len(chunks))
        return BatchPlan(ints(decodes), spec, ints(prefills), ints(chunks), NONE, NONE, model.duration_s(shape))


@dataclass(slots=True)
class Thrasher:
    """Stock-like plans, but every fifth step the oldest decode is evicted, and asked for again in the same plan."""

    inner: BatchPolicy
    step: int = 0

    def plan(
        self, now_s: float, table: RequestTable, free_blocks: int, model: TimeModel, limits: EngineLimits
    ) -> BatchPlan:
        """Plan one step."""
        self.step += 1
        plan = self.inner.plan(now_s, table, free_blocks, model, limits)
        if self.step % 5 == 0 and len(plan.decode_slots) > 1:
            return replace(plan, preempt_slots=plan.decode_slots[:1])
        return plan


@dataclass(slots=True)
class Whims:
    """Any decodes, any chunks, any evictions; with nonsense, also what contradicts itself, fails or is not there."""

    random: random.Random
    nonsense: float = 0.0

    def plan(
        self, now_s: float, table: RequestTable, free_blocks: int, model: TimeModel, limits: EngineLimits
    ) -> BatchPlan:
        """Plan one step."""
        draw = self.random
        if draw.random() < self.nonsense:
            if draw.random() < 0.5:
                raise ValueError("nonsense on purpose")
            return replace(empty(), prefill_slots=ints([10_000]), prefill_tokens=ints([5]))
        slots = table.slots().tolist()
        decodes = [s for s in slots if table.prefill_remaining[s] == 0 and draw.random() < 0.7]
        waiting = [s for s in slots if table.prefill_remaining[s] > 0 and draw.random() < 0.7]
        draw.shuffle(waiting)
        budget = limits.max_batch_tokens - len(decodes)
        resident = int((table.kv_blocks[slots] > 0).sum())
        chunks, prefills = [], []
        for slot in waiting:
            starts = table.kv_blocks[slot] == 0
            chunk = min(draw.choice((1, 3, 16, 50, 1000)), int(table.prefill_remaining[slot]), budget)
            if chunk > 0 and not (starts and resident >= limits.max_batch_requests):
                resident += bool(starts)
                budget -= chunk
                prefills.append(slot)
                chunks.append(chunk)
        evicted = [s for s in slots if table.kv_blocks[s] > 0 and draw.random() < 0.05]
        if not self.nonsense:
            evicted = [s for s in evicted if s not in decodes and s not in prefills]
        relegated = [s for s in slots if table.standard[s] and draw.random() < 0.05]
        return BatchPlan(
            ints(decodes), ints([1] * len(decodes)), ints(prefills), ints(chunks), ints(evicted), ints(relegated), 0.01
        )


@dataclass(frozen=True, slots=True)
class StandardOnly:
    """Best-effort requests sit out for as long as a standard one is there."""

    inner: BatchPolicy

    def plan(
        self, now_s: float, table: RequestTable, free_blocks: int, model: TimeModel, limits: EngineLimits
    ) -> BatchPlan:
        """Plan one step."""
        if table.standard[table.slots()].any():
            table = table.copy()
            table.active &= table.standard
        return self.inner.plan(now_s, table, free_blocks, model, limits)


@dataclass(slots=True)
class NewcomersFirst:
    """Whoever holds KV sits out while somebody holds none; seen: prompt tokens left at the first step, by slot."""

    inner: BatchPolicy
    seen: dict[int, int] | None = None

    def plan(
        self, now_s: float, table: RequestTable, free_blocks: int, model: TimeModel, limits: EngineLimits
    ) -> BatchPlan:
        """Plan one step."""
        if self.seen is None:
            self.seen = {slot: int(table.prefill_remaining[slot]) for slot in table.slots().tolist()}
        if (table.kv_blocks[table.slots()] == 0).any():
            table = table.copy()
            table.active &= table.kv_blocks == 0
        return self.inner.plan(now_s, table, free_blocks, model, limits)


class Failing:
    """Raises at two steps of three."""

    def __init__(self, inner: BatchPolicy) -> None:
        """inner plans the third."""
        self.inner, self.step = inner, 0

    def plan(
        self, now_s: float, table: RequestTable, free_blocks: int, model: TimeModel, limits: EngineLimits
    ) -> BatchPlan:
        """Plan one step, or fail."""
        self.step += 1
        if self.step % 3:
            raise RuntimeError("this policy fails on purpose")
        return self.inner.plan(now_s, table, free_blocks, model, limits)


class Lazy:
    """Plans nothing, ever; and every other time something that is not there."""

    def __init__(self) -> None:
        """Start at step 0."""
        self.step = 0

    def plan(
        self, now_s: float, table: RequestTable, free_blocks: int, model: TimeModel, limits: EngineLimits
    ) -> BatchPlan:
        """Plan one step of nothing."""
        self.step += 1
        return replace(empty(), decode_slots=ints([999]), spec_tokens=ints([1])) if self.step % 2 else empty()


def odd_chunks() -> BatchPolicy:
    """Policy by path."""
    return OddChunks()


def thrasher() -> BatchPolicy:
    """Policy by path."""
    return Thrasher(registry.batch_policy("vllm-v1"))


def standard_only() -> BatchPolicy:
    """Policy by path."""
    return StandardOnly(registry.batch_policy("vllm-v1"))


def failing() -> BatchPolicy:
    """Policy by path."""
    return Failing(registry.batch_policy("vllm-v1"))


def lazy() -> BatchPolicy:
    """Policy by path."""
    return Lazy()
