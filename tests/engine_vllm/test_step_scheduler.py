"""The step scheduler inside vLLM: plans are carried out, state is true, and nothing a policy does stops the engine."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import AsyncIterator
from dataclasses import replace

import pytest
import pytest_asyncio

from engine.protocol import EngineError, StepSettings
from engine.vllm.messages import StepRecord
from tests.engine_vllm.harness import GREEDY, Harness, Result, make_request
from tests.engine_vllm.reference import TOLERANCE, Reference

pytestmark = [pytest.mark.real_engine, pytest.mark.asyncio(loop_scope="package")]

ODD = "tests.engine_vllm.odd_policies:"
DEFAULT = "vllm-v1"


@pytest_asyncio.fixture(loop_scope="package")
async def policy(engine: Harness) -> AsyncIterator[None]:
    """Put the policy back, whatever the test sets; an engine that has done nothing yet first makes a few steps."""
    if not engine.records:
        await engine.result(await engine.submit(words(3, 0), replace(GREEDY, max_tokens=2), standard=True))
    yield
    await engine.engine.configure(StepSettings(policy=DEFAULT, time_margin=1.0))


def words(count: int, seed: int) -> list[int]:
    """Random prompt that no other test has in the prefix cache."""
    generator = random.Random(seed)
    return [generator.randrange(100, 40_000) for _ in range(count)]


async def mixed_load(engine: Harness, seed: int, requests: int = 8) -> list[Result]:
    """Requests of many lengths that come while others run."""
    generator = random.Random(seed)
    ids = []
    for number in range(requests):
        tokens = words(generator.choice((3, 40, 90, 130, 260, 300)), seed * 100 + number)
        spec = replace(GREEDY, max_tokens=generator.randrange(2, 12), ignore_eos=True)
        ids.append(await engine.submit(tokens, spec, standard=number % 3 > 0))
        if number % 3 == 0:
            await asyncio.sleep(0.05)
    return [await engine.result(request_id) for request_id in ids]


def since(engine: Harness, step: int) -> list[StepRecord]:
    """Records after a step."""
    return [record for record in engine.records if record.step > step]


@pytest.mark.parametrize("name", ["slos", "vllm-v1", "sarathi", ODD + "odd_chunks"])
@pytest.mark.usefixtures("policy")
async def test_what_is_planned_is_what_runs(engine: Harness, name: str) -> None:
    await engine.engine.configure(StepSettings(policy=name))
    start, deviations = engine.records[-1].step, engine.records[-1].deviations
    for result in await mixed_load(engine, seed=len(name)):
        assert result.finish_reason == "length"
    records = [r for r in since(engine, start) if r.batch_tokens]
    assert not any(record.stock for record in records)
    for record in records:
        assert {r.request_id: r.scheduled_tokens for r in record.each() if r.scheduled_tokens} == {
            r.request_id: r.planned_tokens for r in record.each() if r.planned_tokens
        }
    assert records[-1].deviations == deviations
    assert records[-1].plan_failures == engine.records[0].plan_failures


@pytest.mark.usefixtures("policy")
async def test_odd_chunks_give_the_same_tokens(engine: Harness, reference: Reference) -> None:
    prompt = reference.chat("Summarise the plot of Macbeth. " * 20)
    other = reference.chat("What is the largest planet?")
    plain = await engine.generate(prompt)
    await engine.engine.configure(StepSettings(policy=ODD + "odd_chunks"))
    start = engine.records[-1].step
    # Another first token: nothing of it is in the prefix cache.
    changed = [5, *prompt]
    one, two, three = await asyncio.gather(*(engine.generate(p) for p in (changed, other, prompt)))
    assert three.tokens == plain.tokens
    for tokens, result in ((changed, one), (other, two)):
        assert reference.gap(tokens, result.tokens) <= TOLERANCE
    chunks = [r.scheduled_tokens for record in since(engine, start) for r in record.each() if r.prefill_remaining]
    assert len(chunks) > 3


@pytest.mark.usefixtures("policy")
async def test_evicted_requests_come_back_with_their_tokens(engine: Harness, reference: Reference) -> None:
    """Evictions in mid-decode, some asked for again in the same step: output is as if nothing had happened."""
    prompts = [reference.chat(q) for q in ("Why is the sky blue?", "Tell me a story about a fox.", "Who wrote Hamlet?")]
    spec = replace(GREEDY, max_tokens=24, ignore_eos=True)
    plain = [await engine.generate(p, spec) for p in prompts]
    await engine.engine.configure(StepSettings(policy=ODD + "thrasher"))
    thrashed = await asyncio.gather(*(engine.generate(p, spec) for p in prompts))
    assert sum(result.updates[-1].preemptions for result in thrashed) >= 3
    for prompt, before, after in zip(prompts, plain, thrashed, strict=True):
        assert len(after.tokens) == 24
        assert after.text == reference.tokenizer.decode(after.tokens, skip_special_tokens=True)
        assert before.tokens == after.tokens or reference.gap(prompt, after.tokens) <= TOLERANCE
    evictions = [u for r in thrashed for u in r.updates if u.preemptions and not u.token_ids and not u.context_tokens]
    assert evictions, "no update told of an eviction"
    assert all(u.prefill_remaining > 0 and u.kv_blocks == 0 for u in evictions)


@pytest.mark.parametrize("name", ["failing", "lazy"])
@pytest.mark.usefixtures("policy")
async def test_a_bad_policy_does_not_stop_the_engine(engine: Harness, name: str) -> None:
    failures = engine.records[-1].plan_failures
    await engine.engine.configure(StepSettings(policy=ODD + name))
    start = engine.records[-1].step
    for result in await mixed_load(engine, seed=11, requests=4):
        assert result.finish_reason == "length"
    records = [r for r in since(engine, start) if r.batch_tokens]
    assert records[-1].plan_failures > failures
    assert any(record.stock for record in records)


async def test_cancel_while_it_is_being_submitted(engine: Harness) -> None:
    await engine.idle()
    request = make_request(words(50, 3), replace(GREEDY, max_tokens=300, ignore_eos=True))
    engine.results[request.request_id] = Result()
    submitting = asyncio.create_task(engine.engine.submit(request))
    await asyncio.sleep(0)
    await engine.engine.cancel(request.request_id)
    await submitting
    assert (await engine.result(request.request_id)).finish_reason == "cancelled"
    gone = asyncio.create_task(engine.engine.submit(make_request(words(50, 4), GREEDY)))
    await asyncio.sleep(0)
    gone.cancel()
    await asyncio.gather(gone, return_exceptions=True)
    await engine.idle()


async def test_cancel_frees_every_block(engine: Harness) -> None:
    await engine.idle()
    ids = [await engine.submit(words(200, seed), replace(GREEDY, max_tokens=200, ignore_eos=True)) for seed in range(4)]
    await engine.until(lambda: sum(bool(engine.results[i].tokens) for i in ids) >= 2)
    assert engine.events[-1].free_blocks < engine.info.kv_blocks
    for request_id in ids:
        await engine.engine.cancel(request_id)
        await engine.engine.cancel("not a request")
    for request_id in ids:
        assert (await engine.result(request_id)).finish_reason == "cancelled"
    await engine.idle()
    assert engine.events[-1].free_blocks == engine.info.kv_blocks


@pytest.mark.usefixtures("policy")
async def test_promote_and_relegate_reach_the_policy(engine: Harness) -> None:
    """Under a policy that serves best-effort requests only when there is no standard one."""
    await engine.engine.configure(StepSettings(policy=ODD + "standard_only"))
    spec = replace(GREEDY, max_tokens=400, ignore_eos=True)
    first = await engine.submit(words(20, 31), spec)
    await engine.until(lambda: len(engine.results[first].tokens) > 2)
    second = await engine.submit(words(20, 32), spec, standard=False)
    tokens = len(engine.results[first].tokens)
    await engine.until(lambda: len(engine.results[first].tokens) > tokens + 5)
    assert not engine.results[second].tokens
    await engine.engine.promote(second, time.monotonic() + 30, None)
    await engine.engine.promote("not a request", time.monotonic(), None)
    await engine.until(lambda: len(engine.results[second].tokens) > 3)
    await engine.engine.relegate(first)
    await engine.engine.relegate("not a request")
    tokens = len(engine.results[second].tokens)
    await engine.until(lambda: len(engine.results[second].tokens) > tokens + 3)
    stopped_at = len(engine.results[first].tokens)
    await engine.until(lambda: len(engine.results[second].tokens) > tokens + 8)
    assert len(engine.results[first].tokens) == stopped_at
    await engine.engine.cancel(second)
    await engine.until(lambda: len(engine.results[first].tokens) > stopped_at)
    await engine.engine.cancel(first)
    await engine.idle()


@pytest.mark.usefixtures("policy")
async def test_a_request_that_has_missed_is_relegated(engine: Harness) -> None:
    """Policy slos demotes what it cannot keep, and says so in the event."""
    await engine.engine.configure(StepSettings(policy="slos"))
    now = time.monotonic()
    result = await engine.generate(words(200, 77), arrival_s=now - 5, first_token_due_s=now - 4, tpot_s=0.01)
    assert result.finish_reason == "length"
    assert any(update.relegated for update in result.updates)


async def test_settings_that_make_no_sense_are_refused(engine: Harness) -> None:
    for settings, says in (
        (StepSettings(policy="no such policy"), "no such policy"),
        (StepSettings(policy="no.such.module:policy"), "no.such.module"),
        (StepSettings(time_margin=0.5), "margin"),
        (StepSettings(time_model_json="{}"), "time model"),
        (StepSettings(best_effort_floor=2.0), "best_effort_floor"),
    ):
        with pytest.raises(EngineError, match=says):
            await engine.engine.configure(settings)


async def test_state_in_events_is_consistent(engine: Harness) -> None:
    """Prefill counts down, context counts up, blocks cover the context, and steps are numbered without a gap."""
    first = len(engine.events)
    results = await mixed_load(engine, seed=5)
    block = engine.info.block_size
    for result in results:
        remaining = [u.prefill_remaining for u in result.updates if not u.token_ids and u.context_tokens]
        assert remaining == sorted(remaining, reverse=True)
        for update in result.updates:
            if update.kv_blocks:
                assert (update.kv_blocks - 1) * block <= update.context_tokens <= update.kv_blocks * block
    steps = [event.step for event in engine.events[first:]]
    assert steps == sorted(steps)
    assert set(range(steps[0], steps[-1] + 1)) == set(steps)
    for event in engine.events[first:]:
        if event.batch_tokens:
            assert event.duration_s > 0
            assert event.predicted_s > 0
            assert event.batch_tokens <= engine.info.max_batch_tokens
