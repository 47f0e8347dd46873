"""The scheduler's half of the KV connector keeps the engine stepping while blocks of finished requests are in use."""

from __future__ import annotations

from types import SimpleNamespace

from engine.vllm.kv.scheduler import SchedulerHalf

NOTHING = SimpleNamespace(
    preempted_req_ids=None,
    scheduled_new_reqs=[],
    scheduled_cached_reqs=SimpleNamespace(req_ids=[], num_computed_tokens=[]),
    num_scheduled_tokens={},
)
"""What vLLM's scheduler says of a step in which nobody runs."""


def loading(half: SchedulerHalf, request_id: str) -> SimpleNamespace:
    """A request whose prompt is on its way from another engine."""
    params = {"producer": False, "transfer_id": request_id, "generation": 1, "lease_s": 5.0, "peer": "p"}
    request = SimpleNamespace(request_id=request_id, num_prompt_tokens=40, kv_transfer_params=params)
    assert half.tokens_to_load(request, 0) == 40
    half.allocated(request, [3, 4, 5], 40)
    (expectation,) = half.take_metadata(NOTHING, {}).expectations
    assert expectation.block_ids == [3, 4, 5]
    return request


def test_blocks_of_a_cancelled_load_are_in_use_until_the_workers_say_that_it_is_over() -> None:
    half = SchedulerHalf(block_size=16)
    request = loading(half, "cancelled")
    half.finished(request)
    assert half.has_pending_work()
    half.workers_report(set(), {"another"})
    assert half.has_pending_work()
    half.workers_report(set(), {"cancelled"})
    assert not half.has_pending_work()


def test_a_load_that_arrived_keeps_nobody_stepping_afterwards() -> None:
    half = SchedulerHalf(block_size=16)
    request = loading(half, "arrived")
    half.workers_report(set(), {"arrived"})
    half.finished(request)
    assert not half.has_pending_work()
