"""An engine with n-gram speculation: the same tokens, fewer steps; at the end its process is killed."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest
import pytest_asyncio

from engine.protocol import EngineError, RequestRejected, SamplingSpec, StepSettings
from engine.vllm.config import NgramSpeculation, VllmConfig
from engine.vllm.engine import VllmEngine
from tests.engine_vllm.harness import GREEDY, Harness, make_request
from tests.engine_vllm.reference import TOLERANCE, Reference

pytestmark = [pytest.mark.real_engine, pytest.mark.asyncio(loop_scope="package")]

REPETITIVE = ("Repeat this: one two three, one two three, one two three, one two three.", "Count from 1 to 30.")


@pytest_asyncio.fixture(scope="module", loop_scope="package")
async def speculating(model_folder: Path) -> AsyncIterator[Harness]:
    """Engine that drafts up to four tokens by n-gram look-up."""
    config = VllmConfig(
        model_dir=model_folder,
        max_model_len=1024,
        max_num_batched_tokens=256,
        max_num_seqs=16,
        kv_blocks=27,
        policy="vllm-v1",
        speculation=NgramSpeculation(draft_tokens=4),
    )
    harness = Harness(config)
    await harness.start()
    try:
        yield harness
    finally:
        await harness.close()


@pytest.mark.parametrize("policy", ["stock", "slos", "tests.engine_vllm.odd_policies:odd_chunks"])
async def test_tokens_are_those_without_speculation(
    engine: Harness, speculating: Harness, reference: Reference, policy: str
) -> None:
    """odd_chunks lets every other request draft four tokens and the rest none."""
    assert speculating.info.max_spec_tokens == 5
    await speculating.engine.configure(StepSettings(policy=policy))
    spec = replace(GREEDY, max_tokens=40, ignore_eos=True)
    drafted = accepted = 0
    for question in REPETITIVE:
        prompt = reference.chat(question)
        plain = await engine.generate(prompt, spec)
        with_drafts, again = await asyncio.gather(*(speculating.generate(prompt, spec) for _ in range(2)))
        for result in (with_drafts, again):
            assert len(result.tokens) == 40
            assert result.tokens == plain.tokens or reference.gap(prompt, result.tokens) <= TOLERANCE
            assert result.text == reference.tokenizer.decode(result.tokens, skip_special_tokens=True)
            drafted += sum(update.draft_tokens for update in result.updates)
            accepted += sum(update.accepted_draft_tokens for update in result.updates)
            assert max(len(update.token_ids) for update in result.updates) <= 5
    assert accepted <= drafted
    if policy != "slos":
        # Whether speculation pays is for policy slos to say.
        assert accepted > 0
    assert speculating.records[-1].deviations == 0
    assert speculating.records[-1].plan_failures == 0


@pytest.mark.parametrize(
    ("sampling", "says"), [(SamplingSpec(min_p=0.1), "min_p"), (SamplingSpec(logit_bias={5: 1.0}), "logit_bias")]
)
async def test_what_speculation_cannot_do_is_refused_by_name(
    speculating: Harness, sampling: SamplingSpec, says: str
) -> None:
    with pytest.raises(RequestRejected) as caught:
        await speculating.engine.submit(make_request([5, 6, 7], sampling))
    assert says in caught.value.reason
    assert "speculative" in caught.value.reason


async def test_a_killed_engine_process_shows_at_once(speculating: Harness) -> None:
    """Last in this module: SIGKILL of EngineCore ends open requests with an error, and events() raises."""
    request_id = await speculating.submit([5, 6, 7, 8] * 10, replace(GREEDY, max_tokens=500, ignore_eos=True))
    await speculating.until(lambda: bool(speculating.results[request_id].tokens))
    os.kill(speculating.engine.process_id, signal.SIGKILL)
    began = time.monotonic()
    result = await speculating.result(request_id, timeout_s=20)
    assert (result.finish_reason, bool(result.error)) == ("error", True)
    await asyncio.wait_for(speculating.failed.wait(), 20)
    assert time.monotonic() - began < 20
    assert isinstance(speculating.failure, EngineError)
    for call in (
        speculating.engine.submit(make_request([5, 6])),
        speculating.engine.cancel(request_id),
        speculating.engine.promote(request_id, 0.0, None),
        speculating.engine.profile(quick=True),
    ):
        with pytest.raises(EngineError):
            await call


async def test_a_start_that_cannot_be_is_explained(tmp_path: Path, model_folder: Path) -> None:
    with pytest.raises(EngineError, match=r"engine\.vllm\.model"):
        await VllmEngine(VllmConfig(tmp_path / "nothing")).start()
    with pytest.raises(EngineError, match=r"config\.json"):
        await VllmEngine(VllmConfig(tmp_path)).start()
    with pytest.raises(EngineError, match="nonsense"):
        await VllmEngine(VllmConfig(model_folder, policy="nonsense")).start()
    with pytest.raises(EngineError, match="not running"):
        await VllmEngine(VllmConfig(model_folder)).submit(make_request([5]))
    with pytest.raises(EngineError, match="not started"):
        await anext(VllmEngine(VllmConfig(model_folder)).events())
