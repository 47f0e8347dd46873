"""Batch policies that tests need: the plainest one, and one that plans anything at all."""

from __future__ import annotations

import random

import numpy as np

from scheduling.policy import BatchPlan
from scheduling.request_table import RequestTable
from scheduling.time_model import TimeModel
from scheduling.types import EngineLimits


def make_plan(
    decodes: list[tuple[int, int]], prefills: list[tuple[int, int]], preempt: list[int], relegate: list[int]
) -> BatchPlan:
    def column(values: list[int]) -> np.ndarray:
        return np.array(values, dtype=np.int64)

    return BatchPlan(
        decode_slots=column([slot for slot, _ in decodes]),
        spec_tokens=column([tokens for _, tokens in decodes]),
        prefill_slots=column([slot for slot, _ in prefills]),
        prefill_tokens=column([tokens for _, tokens in prefills]),
        preempt_slots=column(preempt),
        relegate_slots=column(relegate),
        predicted_s=0.001,
    )


class DecodeFirst:
    """All decodes, then prefills in order of arrival, as many tokens as a step may have."""

    def plan(
        self, now_s: float, table: RequestTable, free_blocks: int, model: TimeModel, limits: EngineLimits
    ) -> BatchPlan:
        slots = [int(slot) for slot in table.slots()]
        decodes = [(slot, limits.max_spec_tokens) for slot in slots if table.prefill_remaining[slot] == 0]
        prefills = [(slot, limits.max_batch_tokens) for slot in slots if table.prefill_remaining[slot] > 0]
        return make_plan(decodes, prefills, [], [])


class Anything:
    """Plans that make no sense but name real slots; now and then empty ones."""

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed)

    def plan(
        self, now_s: float, table: RequestTable, free_blocks: int, model: TimeModel, limits: EngineLimits
    ) -> BatchPlan:
        slots = [int(slot) for slot in table.slots()]
        self._random.shuffle(slots)

        def some(share: float) -> list[int]:
            return [slot for slot in slots if self._random.random() < share]

        return make_plan(
            [(slot, self._random.randint(0, 4)) for slot in some(0.7)],
            [(slot, self._random.randint(0, 40)) for slot in some(0.7)],
            some(0.1),
            some(0.1),
        )
