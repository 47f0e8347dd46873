"""The step scheduler, made to be looked into."""

from __future__ import annotations

from typing import Any

from engine.vllm.messages import StepRecord
from engine.vllm.step_scheduler import StepScheduler
from scheduling.policy import BatchPolicy


class RecordingScheduler(StepScheduler):
    """Keeps records in place of sending them, and takes a policy object."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        """Build the scheduler."""
        super().__init__(*args, **kwargs)
        self.records: list[StepRecord] = []

    def _send(self, record: StepRecord) -> None:
        self.records.append(record)

    def use(self, policy: BatchPolicy) -> None:
        """Plan with this policy from the next step on."""
        self._policy = policy

    def check(self) -> None:
        """Whether the planner's table says what vLLM's requests and blocks say."""
        residents, table = self._residents, self._residents.table
        assert set(residents.by_vllm_id) == set(self.requests)
        assert len(table) == len(self.requests)
        for vllm_id, resident in residents.by_vllm_id.items():
            request, slot = self.requests[vllm_id], resident.slot
            blocks = self.kv_cache_manager.get_block_ids(vllm_id)[0] if request.num_computed_tokens else []
            if resident.decoding:
                assert request.num_tokens - request.num_computed_tokens == 1
                assert table.prefill_remaining[slot] == 0
                assert table.context[slot] == request.num_computed_tokens
            elif request in self.running or request.num_preemptions == 0:
                assert table.context[slot] == request.num_computed_tokens
            assert table.generated[slot] == request.num_output_tokens + resident.facts.prior_tokens
            assert table.preemptions[slot] == request.num_preemptions
            assert table.kv_blocks[slot] == len(blocks)
