"""The default batch policy: dynamic batches from per-request deadlines, with best-effort work on what is left.

Algorithm 2 of the paper in per-request form (ALGORITHMS sections 4 and 13); the work is in scheduling.kernels.step.
"""

from __future__ import annotations

from dataclasses import dataclass

from scheduling.batch_settings import DEFAULT_SETTINGS, BatchSettings
from scheduling.kernels.step import plan_step
from scheduling.policy import BatchPlan
from scheduling.request_table import RequestTable
from scheduling.time_model import TimeModel
from scheduling.types import EngineLimits


@dataclass(frozen=True, slots=True)
class DeadlineBatching:
    """Batches that keep every promise the exact simulation finds keepable.

    best_effort_floor: share of the engine's time that admission leaves to best-effort work, so that it never starves.
    """

    settings: BatchSettings = DEFAULT_SETTINGS
    best_effort_floor: float = 0.02

    def plan(
        self, now_s: float, table: RequestTable, free_blocks: int, model: TimeModel, limits: EngineLimits
    ) -> BatchPlan:
        """Plan one step (about 10 microseconds with 50 residents); never empty while a request could run."""
        decode_slots, spec_tokens, prefill_slots, prefill_tokens, preempted, relegated, predicted_s = plan_step(
            table.ints,
            table.floats,
            table.flags,
            table.high_water,
            now_s,
            free_blocks,
            model.array,
            model.margin,
            self.settings.array,
            float(limits.max_batch_tokens),
            float(limits.max_batch_requests),
            limits.block_size,
            limits.total_blocks,
            limits.max_spec_tokens,
        )
        return BatchPlan(decode_slots, spec_tokens, prefill_slots, prefill_tokens, preempted, relegated, predicted_s)
