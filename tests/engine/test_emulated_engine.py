from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import AsyncIterator
from dataclasses import replace

import pytest

from engine.emulated import EmulatedConfig, EmulatedEngine
from engine.protocol import EngineError, EngineRequest, RequestRejected, SamplingSpec, StepEvent, StepSettings
from scheduling.policy import BatchPlan, BatchPolicy
from scheduling.request_table import RequestTable
from scheduling.time_model import TimeModel
from scheduling.types import EngineLimits
from tests.engine.policies import DecodeFirst

FAST = TimeModel(((0.001, 1e-6, 0.0, 0.0, 0.0, 0.0),), source="assumed: for tests")
CONFIG = EmulatedConfig(time_model=FAST, kv_blocks=100)


def make_request(request_id: str, max_tokens: int = 10, **changes: object) -> EngineRequest:
    now_s = time.monotonic()
    request = EngineRequest(
        request_id=request_id,
        token_ids=(9, 10, 11),
        prompt_tokens=3,
        sampling=SamplingSpec(temperature=0.0, ignore_eos=True, max_tokens=max_tokens),
        standard=True,
        arrival_s=now_s,
        first_token_due_s=now_s + 10.0,
        tpot_s=1.0,
    )
    return replace(request, **changes)


class Failing:
    """Plans well for a while and then fails."""

    def __init__(self, plans: int) -> None:
        self._left = plans

    def plan(
        self, now_s: float, table: RequestTable, free_blocks: int, model: TimeModel, limits: EngineLimits
    ) -> BatchPlan:
        self._left -= 1
        if self._left < 0:
            raise ZeroDivisionError("this policy has a bug")
        return DecodeFirst().plan(now_s, table, free_blocks, model, limits)


def by_name(name: str, floor: float | None) -> BatchPolicy:
    if name == "plain":
        return DecodeFirst()
    raise ValueError(f"unknown policy {name!r}")


@pytest.fixture
async def engine() -> AsyncIterator[EmulatedEngine]:
    made = EmulatedEngine(replace(CONFIG, policy="plain"), by_name)
    await made.start()
    yield made
    await made.close()


async def collect(engine: EmulatedEngine, finishes: int, timeout_s: float = 20.0) -> list[StepEvent]:
    steps: list[StepEvent] = []
    async with asyncio.timeout(timeout_s):
        async for step in engine.events():
            steps.append(step)
            if sum(update.finish_reason != "" for one in steps for update in one.updates) == finishes:
                break
    return steps


async def test_shipped_policy_serves_requests() -> None:
    engine = EmulatedEngine(CONFIG)
    info = await engine.start()
    try:
        assert info.emulated
        for number in range(20):
            await engine.submit(make_request(f"r{number}", standard=number % 2 == 0))
        steps = await collect(engine, 20)
    finally:
        await engine.close()
    assert sum(len(update.token_ids) for step in steps for update in step.updates) == 200
    assert steps[-1].free_blocks == CONFIG.kv_blocks


async def test_steps_follow_the_time_model(engine: EmulatedEngine) -> None:
    await engine.submit(make_request("r", max_tokens=100))
    steps = await collect(engine, 1)
    assert [step.step for step in steps] == list(range(1, 101))
    assert sum(step.duration_s for step in steps) == pytest.approx(100 * 0.001, rel=0.1)
    ends = [step.ended_s for step in steps]
    assert all(later - earlier >= 0.000999 for earlier, later in itertools.pairwise(ends))


async def test_noise_changes_durations_and_not_tokens() -> None:
    said = []
    for noise in (0.0, 0.3):
        engine = EmulatedEngine(replace(CONFIG, policy="plain", time_noise=noise), by_name)
        await engine.start()
        await engine.submit(make_request("r", max_tokens=40))
        steps = await collect(engine, 1)
        await engine.close()
        durations = {round(step.duration_s, 9) for step in steps[1:]}
        assert (len(durations) > 10) is (noise > 0)
        said.append([token for step in steps for update in step.updates for token in update.token_ids])
    assert said[0] == said[1]


async def test_cancel_running_waiting_and_unknown(engine: EmulatedEngine) -> None:
    await engine.submit(make_request("running", max_tokens=10_000))
    await engine.submit(make_request("waiting", max_tokens=10_000))
    await asyncio.sleep(0.01)
    for request_id in ("waiting", "running", "unknown", "running"):
        await engine.cancel(request_id)
    steps = await collect(engine, 2)
    ended = [update for step in steps for update in step.updates if update.finish_reason]
    assert [update.finish_reason for update in ended] == ["cancelled", "cancelled"]
    assert steps[-1].free_blocks == CONFIG.kv_blocks
    await engine.submit(make_request("running"))
    await collect(engine, 1)


async def test_cancel_before_the_first_step_is_answered(engine: EmulatedEngine) -> None:
    await engine.submit(make_request("r"))
    await engine.cancel("r")
    steps = await collect(engine, 1)
    assert [(update.finish_reason, update.token_ids) for update in steps[-1].updates] == [("cancelled", ())]


async def test_nothing_happens_while_idle(engine: EmulatedEngine) -> None:
    await engine.submit(make_request("r"))
    await collect(engine, 1)
    with pytest.raises(TimeoutError):
        await collect(engine, 1, timeout_s=0.1)


async def test_unread_events_hold_the_engine_up(engine: EmulatedEngine) -> None:
    await engine.submit(make_request("r", max_tokens=1000))
    await asyncio.sleep(0.8)
    steps = await collect(engine, 1)
    assert len(steps) == 1000
    assert max(step.ended_s for step in steps[:200]) < min(step.ended_s for step in steps[400:])


async def test_failing_policy_surfaces_as_engine_error() -> None:
    engine = EmulatedEngine(CONFIG, lambda name, floor: Failing(25))
    await engine.start()
    await engine.submit(make_request("r", max_tokens=1000))
    with pytest.raises(EngineError, match="this policy has a bug"):
        await collect(engine, 1)
    with pytest.raises(EngineError, match="this policy has a bug"):
        await engine.submit(make_request("s"))
    await engine.close()
    await engine.close()


async def test_policy_that_fails_at_once_fails_the_start() -> None:
    engine = EmulatedEngine(CONFIG, lambda name, floor: Failing(0))
    with pytest.raises(EngineError, match="this policy has a bug"):
        await engine.start()


async def test_closing_ends_the_events() -> None:
    engine = EmulatedEngine(replace(CONFIG, policy="plain"), by_name)
    await engine.start()
    await engine.submit(make_request("r", max_tokens=5000))
    reading = asyncio.create_task(collect(engine, 1))
    await asyncio.sleep(0.02)
    await engine.close()
    await asyncio.wait_for(reading, 5)
    with pytest.raises(EngineError, match="closed"):
        await engine.submit(make_request("s"))


async def test_configure_changes_what_is_given_and_refuses_the_rest(engine: EmulatedEngine) -> None:
    slow = TimeModel(((0.5, 0.0, 0.0, 0.0, 0.0, 0.0),))
    await engine.configure(StepSettings(policy="plain", time_margin=1.2, time_model_json=slow.to_json()))
    for wrong in (
        StepSettings(policy="other"),
        StepSettings(time_margin=0.9),
        StepSettings(time_model_json="{}"),
    ):
        with pytest.raises(EngineError, match="cannot be used"):
            await engine.configure(wrong)
    await engine.submit(make_request("r"))
    steps = await collect(engine, 1)
    # What the policy believes does not change how long steps take.
    assert sum(step.duration_s for step in steps) < 0.1


async def test_unknown_policy_fails_the_start() -> None:
    with pytest.raises(EngineError, match="unknown policy"):
        await EmulatedEngine(replace(CONFIG, policy="nonsense")).start()


async def test_profile_is_the_time_model(engine: EmulatedEngine) -> None:
    model = TimeModel.from_json(await engine.profile(quick=True))
    assert model.lines == FAST.lines


async def test_rejection_leaves_the_engine_alone(engine: EmulatedEngine) -> None:
    await engine.submit(make_request("r"))
    with pytest.raises(RequestRejected):
        await engine.submit(make_request("r"))
    assert len((await collect(engine, 1))[-1].updates) == 1


@pytest.mark.parametrize(
    "changes",
    [
        {"kv_blocks": 0},
        {"max_spec_tokens": 0},
        {"accept_rate": 1.0},
        {"time_noise": -1.0},
        {"time_scale": 0.0},
        {"vocab_size": 3},
        {"output_mean": 0.0},
    ],
)
def test_wrong_settings_are_named(changes: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=next(iter(changes))):
        replace(CONFIG, **changes)
