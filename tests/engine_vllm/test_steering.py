"""The step scheduler over vLLM's real queues and blocks, without a model: plans of every kind, thousands of steps."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from engine.vllm.bare_scheduler import BareScheduler
from engine.vllm.config import VllmConfig
from scheduling import registry
from tests.engine_vllm.odd_policies import NewcomersFirst, Whims
from tests.engine_vllm.recording_scheduler import RecordingScheduler

pytestmark = pytest.mark.real_engine

BLOCK = 16
STEP_LIMIT = 3000


def build(folder: Path, blocks: int) -> BareScheduler:
    """Scheduler of a small engine."""
    config = VllmConfig(
        model_dir=folder, max_model_len=512, max_num_batched_tokens=128, max_num_seqs=8, policy="vllm-v1"
    )
    return BareScheduler(config, blocks=blocks + 1, block_size=BLOCK, scheduler_class=RecordingScheduler)


@pytest.fixture(scope="module")
def ample(model_folder: Path) -> Iterator[BareScheduler]:
    """With KV for everything."""
    bare = build(model_folder, blocks=400)
    yield bare
    bare.close()


@pytest.fixture(scope="module")
def scarce(model_folder: Path) -> Iterator[BareScheduler]:
    """With KV for about two requests: vLLM evicts by itself too."""
    bare = build(model_folder, blocks=40)
    yield bare
    bare.close()


def play(bare: BareScheduler, draw: random.Random, requests: int, *, share_prefix: bool) -> dict[str, int]:
    """Let requests come, be cancelled and finish under the policy; returns the outputs asked of those that stayed."""
    prefix = [draw.randrange(3, 40_000) for _ in range(64)]
    asked: dict[str, int] = {}
    coming = [f"q{draw.randrange(10**9)}-{n}" for n in range(requests)]
    steps = 0
    while coming or bare.scheduler.requests:
        steps += 1
        assert steps < STEP_LIMIT, "requests are stuck"
        if coming and (draw.random() < 0.3 or not bare.scheduler.requests):
            name, size = coming.pop(), draw.choice((1, 5, 40, 120, 300))
            tokens = (prefix if share_prefix and draw.random() < 0.5 else []) + [
                draw.randrange(3, 40_000) for _ in range(size)
            ]
            asked[name] = draw.choice((1, 2, 9, 30))
            bare.add(name, tokens, asked[name], standard=draw.random() < 0.5)
        running = [name for name in asked if name not in bare.finished]
        if running and draw.random() < 0.02:
            bare.abort(gone := draw.choice(running))
            del asked[gone]
            bare.outputs.pop(gone)
        work = bool(bare.scheduler.requests)
        scheduled = bare.step()
        assert scheduled.total_num_scheduled_tokens > 0 or not work, "an empty step while there is work"
        bare.scheduler.check()
    return asked


def assert_all_done(bare: BareScheduler, asked: dict[str, int]) -> None:
    """Every request has the tokens it asked for, and all KV is free."""
    for name, outputs in asked.items():
        assert len(bare.outputs[name]) == outputs
        assert bare.finished[name].name == "LENGTH"
    bare.step()
    assert bare.free_blocks == bare.scheduler._limits.total_blocks
    produced: dict[str, int] = {}
    for record in bare.scheduler.records:
        for request in record.each():
            produced[request.request_id] = produced.get(request.request_id, 0) + len(request.tokens)
            assert request.produced == produced[request.request_id]
    for name, outputs in asked.items():
        assert produced[name] == outputs


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(seed=st.integers(0, 10**6), share_prefix=st.booleans())
def test_what_is_planned_is_what_runs(ample: BareScheduler, seed: int, share_prefix: bool) -> None:
    """With memory for all, every plan of any shape runs to the token; only what was evicted in it does not.

    One saving comes after the plan: a prefix that an earlier request of the same step computes is found in the cache,
    and what was left of the later request's prompt is less than its planned chunk.
    """
    draw = random.Random(seed)
    policy = Whims(draw)
    ample.scheduler.use(policy)
    ample.scheduler.records.clear()
    deviations = ample.scheduler._deviations
    asked = play(ample, draw, requests=draw.randrange(1, 14), share_prefix=share_prefix)
    for record in ample.scheduler.records:
        if not record.stock and record.batch_tokens:
            for request in record.each():
                saved = request.planned_tokens - request.scheduled_tokens
                if saved and share_prefix:
                    assert saved > 0
                    assert request.cached_tokens >= saved
                    assert request.prefill_remaining == 0
                else:
                    assert saved == 0
    if not share_prefix:
        assert ample.scheduler._deviations == deviations
    assert_all_done(ample, asked)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(seed=st.integers(0, 10**6), nonsense=st.sampled_from([0.0, 0.3]))
def test_nothing_is_lost_when_memory_is_short(scarce: BareScheduler, seed: int, nonsense: float) -> None:
    """vLLM evicts, the policy evicts, some plans are nonsense: all requests end with their tokens all the same."""
    draw = random.Random(seed)
    scarce.scheduler.use(Whims(draw, nonsense))
    scarce.scheduler.records.clear()
    asked = play(scarce, draw, requests=draw.randrange(1, 10), share_prefix=True)
    assert_all_done(scarce, asked)
    assert max(r.batch_tokens for r in scarce.scheduler.records) <= 128


def test_requests_whose_kv_has_come_hold_up_nobody_who_is_planned(ample: BareScheduler) -> None:
    """vLLM looks at nobody else while a request that holds KV waits and is left out of the step."""
    scheduler = ample.scheduler
    policy = NewcomersFirst(registry.batch_policy("vllm-v1"))
    scheduler.use(policy)
    scheduler.records.clear()
    ample.add("loaded", list(range(3, 103)), 4)
    ample.add("new", list(range(203, 263)), 4)
    loaded = scheduler.requests["loaded-00000000"]
    scheduler.waiting.remove_requests([loaded])
    scheduler.kv_cache_manager.allocate_slots(loaded, loaded.num_tokens)
    loaded.num_computed_tokens = loaded.num_tokens - 1
    scheduler.kv_holding_waiting.add_request(loaded)
    assert ample.step().num_scheduled_tokens == {"loaded-00000000": 1, "new-00000000": 60}
    assert not scheduler.records[-1].stock
    assert policy.seen is not None
    assert sorted(policy.seen.values()) == [1, 60]
    scheduler.check()
    while scheduler.requests:
        ample.step()
    assert_all_done(ample, {"loaded": 4, "new": 4})
