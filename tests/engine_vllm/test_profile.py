"""The profile of the real engine. How good its fit is depends on the quiet of the machine; here it must be sane."""

from __future__ import annotations

import statistics

import pytest

from engine.protocol import EngineError, EngineInfo
from engine.vllm.profiling import experiments
from scheduling.time_model import BatchShape, TimeModel
from tests.engine_vllm.harness import GREEDY, Harness

pytestmark = pytest.mark.real_engine


@pytest.mark.asyncio(loop_scope="package")
async def test_profile_predicts_the_steps_it_saw(engine: Harness) -> None:
    await engine.idle()
    before = len(engine.records)
    events = len(engine.events)
    model = TimeModel.from_json(await engine.engine.profile(quick=True))
    steps = [r for r in engine.records[before:] if r.batch_tokens]
    assert len(steps) >= 30
    assert len({(r.shape[0], r.shape[1]) for r in steps}) >= 10
    assert model.quality is not None
    assert model.quality.held_out >= 6
    ratios = [model.duration_s(BatchShape(*r.shape)) / r.duration_s for r in steps]
    assert 0.2 < statistics.median(ratios) < 5
    assert model.duration_s(BatchShape(200, 1)) > model.duration_s(BatchShape(20, 1))
    # Nobody may learn from these steps, which were predicted with what the profile replaces.
    assert not any(event.updates or event.duration_s for event in engine.events[events:])
    # The policy is back, and KV is free again.
    await engine.generate([5, 6, 7])
    assert not engine.records[-1].stock or not engine.records[-1].batch_tokens
    await engine.idle()


@pytest.mark.asyncio(loop_scope="package")
async def test_a_busy_engine_is_not_profiled(engine: Harness) -> None:
    request_id = await engine.submit([5, 6, 7, 8])
    with pytest.raises(EngineError, match="idle"):
        await engine.engine.profile(quick=True)
    assert (await engine.result(request_id)).finish_reason == "length"
    assert GREEDY.max_tokens == len(engine.results[request_id].tokens)


@pytest.mark.parametrize("quick", [True, False])
@pytest.mark.parametrize(
    ("blocks", "block", "length", "tokens", "requests"),
    [(27, 128, 1024, 256, 16), (2048, 16, 8192, 8192, 256), (40, 16, 128, 64, 4), (181, 128, 4096, 1024, 64)],
)
def test_experiments_fit_the_engine(
    quick: bool, blocks: int, block: int, length: int, tokens: int, requests: int
) -> None:
    info = EngineInfo("m", blocks, block, length, tokens, requests, "h", emulated=False)
    plan = experiments(info, quick)
    assert len(plan) >= 4
    for experiment in plan:
        assert experiment.tokens < blocks * block
        assert len(experiment.prompts) <= requests
        assert max(experiment.prompts) + experiment.outputs < length
        assert min(experiment.prompts) > experiment.shared
