"""The paper's batches: Algorithm 2, for the policies `dp` and `edf-pb`."""

from __future__ import annotations

from dataclasses import dataclass

from scheduling.batch_settings import DEFAULT_SETTINGS, BatchSettings
from scheduling.kernels.paper_step import plan_paper_step
from scheduling.policy import BatchPlan
from scheduling.request_table import RequestTable
from scheduling.time_model import TimeModel
from scheduling.types import EngineLimits


@dataclass(frozen=True, slots=True)
class PaperBatching:
    """Dynamic batch size by the tightest next-token deadline; at most longest_s, the paper's replanning timeout."""

    longest_s: float = 0.1
    settings: BatchSettings = DEFAULT_SETTINGS

    def cap_s(self, model: TimeModel) -> float:
        """Longest batch on this engine, seconds."""
        return max(self.longest_s, 2.0 * float(model.array[:, 0].max()))

    def plan(
        self, now_s: float, table: RequestTable, free_blocks: int, model: TimeModel, limits: EngineLimits
    ) -> BatchPlan:
        """Plan one step; never empty while a request could run."""
        decode_slots, spec_tokens, prefill_slots, prefill_tokens, preempted, relegated, predicted_s = plan_paper_step(
            table.ints,
            table.floats,
            table.flags,
            table.high_water,
            now_s,
            free_blocks,
            model.array,
            model.margin,
            self.settings.array,
            self.cap_s(model),
            float(limits.max_batch_tokens),
            float(limits.max_batch_requests),
            limits.block_size,
            limits.total_blocks,
            limits.max_spec_tokens,
        )
        return BatchPlan(decode_slots, spec_tokens, prefill_slots, prefill_tokens, preempted, relegated, predicted_s)
