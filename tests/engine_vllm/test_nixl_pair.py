"""Two real engines hand KV over by vLLM's NixlConnector: same tokens as one engine alone, and no block is kept."""

from __future__ import annotations

import importlib.util
import json
import os
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import pytest_asyncio

from engine.kv.config import KvConfig
from engine.protocol import KvTransferSpec, SamplingSpec
from engine.vllm.kv.nixl_settings import with_nixl
from tests.engine_vllm.harness import Harness
from tests.engine_vllm.test_kv_pair import end_configs, prompt_of

pytestmark = [
    pytest.mark.real_engine,
    pytest.mark.timeout(400),
    pytest.mark.asyncio(loop_scope="module"),
    pytest.mark.skipif(importlib.util.find_spec("nixl") is None, reason="the package nixl is not installed"),
]

OUTPUT = SamplingSpec(temperature=0.0, max_tokens=10, ignore_eos=True)
PREFILL = KvTransferSpec("t", 1, True, "d", "", 5.0)
DECODE = replace(PREFILL, producer=False, peer="p")


@dataclass(frozen=True, slots=True)
class Ends:
    """A prefill and a decode engine."""

    prefill: Harness
    decode: Harness

    async def handle(self, prompt: list[int]) -> str:
        """Run a prefill half and return what it says of its KV."""
        leg = await self.prefill.generate(prompt, replace(OUTPUT, max_tokens=1), kv_transfer=PREFILL)
        return leg.updates[-1].kv_handle

    async def idle(self) -> None:
        """Every KV block of either engine is free."""
        await self.prefill.idle()
        await self.decode.idle()


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def ends(model_folder: Path, monkeypatch_module: pytest.MonkeyPatch) -> AsyncIterator[Ends]:
    monkeypatch_module.setenv("UCX_TLS", os.environ.get("UCX_TLS", "tcp,self,sm"))
    sides = [Harness(with_nixl(config, KvConfig())) for config in end_configs(model_folder)]
    try:
        for side in sides:
            await side.start()
        yield Ends(*sides)
    finally:
        for side in sides:
            await side.close()


@pytest.fixture(scope="module")
def monkeypatch_module() -> Iterator[pytest.MonkeyPatch]:
    with pytest.MonkeyPatch.context() as patch:
        yield patch


@pytest.mark.parametrize("length", [20, 300, 700])
async def test_tokens_equal_those_of_one_engine_alone(ends: Ends, length: int) -> None:
    prompt = prompt_of(1000 + length, length)
    rest = await ends.decode.submit(prompt, OUTPUT, kv_transfer=DECODE)
    await ends.decode.engine.hand_over(rest, await ends.handle(prompt))
    handed = await ends.decode.result(rest)
    assert not any(update.kv_recomputed for update in handed.updates)
    assert handed.updates[-1].cached_tokens == 0
    assert handed.tokens == (await ends.prefill.generate(prompt, OUTPUT)).tokens
    await ends.idle()


async def test_kv_that_nobody_fetches_is_let_go(ends: Ends) -> None:
    """The decode half is cancelled before it was told, or never comes: the lease ends, on an engine that is idle."""
    prompt = prompt_of(2000, 300)
    rest = await ends.decode.submit(prompt, OUTPUT, kv_transfer=DECODE)
    await ends.decode.engine.cancel(rest)
    assert (await ends.decode.result(rest)).finish_reason == "cancelled"
    assert await ends.handle(prompt)
    await ends.idle()


async def test_kv_of_a_producer_that_is_gone_is_recomputed(ends: Ends) -> None:
    prompt = prompt_of(2001, 300)
    handle = json.loads(await ends.handle(prompt))
    nobody = {**handle, "remote_port": 1, "remote_engine_id": "gone"}
    rest = await ends.decode.submit(prompt, OUTPUT, kv_transfer=DECODE)
    await ends.decode.engine.hand_over(rest, json.dumps(nobody))
    late = await ends.decode.result(rest)
    assert any(update.kv_recomputed for update in late.updates)
    assert late.tokens == (await ends.prefill.generate(prompt, OUTPUT)).tokens
    await ends.idle()


async def test_a_prefill_half_without_a_handle_is_recomputed(ends: Ends) -> None:
    prompt = prompt_of(2002, 300)
    rest = await ends.decode.submit(prompt, OUTPUT, kv_transfer=DECODE)
    await ends.decode.engine.hand_over(rest, "")
    late = await ends.decode.result(rest)
    assert any(update.kv_recomputed for update in late.updates)
    assert late.tokens == (await ends.prefill.generate(prompt, OUTPUT)).tokens
    await ends.idle()


async def test_cancels_while_kv_is_fetched_leave_nothing(ends: Ends) -> None:
    for number in range(10):
        prompt = prompt_of(2100 + number, 400)
        rest = await ends.decode.submit(prompt, OUTPUT, kv_transfer=DECODE)
        await ends.decode.engine.hand_over(rest, await ends.handle(prompt))
        await ends.decode.engine.cancel(rest)
        assert (await ends.decode.result(rest)).finish_reason in ("cancelled", "length")
    await ends.idle()
    await test_tokens_equal_those_of_one_engine_alone(ends, 200)
