"""Two real engines hand KV over: same tokens as one engine alone, and nothing lost or leaked when a transfer fails."""

from __future__ import annotations

import asyncio
import itertools
import os
import random
from collections.abc import AsyncIterator
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import pytest_asyncio

from engine.kv.config import KvConfig
from engine.protocol import KvTransferSpec, SamplingSpec
from engine.vllm.config import VllmConfig
from engine.vllm.kv.settings import with_kv_exchange
from tests.engine_vllm.harness import Harness, Result

pytestmark = [pytest.mark.real_engine, pytest.mark.timeout(400), pytest.mark.asyncio(loop_scope="module")]

LEASE_S = 2.0
OUTPUT = SamplingSpec(temperature=0.0, max_tokens=10, ignore_eos=True)
_transfers = itertools.count()


@dataclass(frozen=True, slots=True)
class Ends:
    """A prefill and a decode engine."""

    prefill: Harness
    decode: Harness

    async def hand_over(self, prompt: list[int], sampling: SamplingSpec = OUTPUT) -> tuple[str, str]:
        """Submit both halves of a request; returns their ids."""
        transfer = KvTransferSpec(f"t{next(_transfers)}", 1, True, "d", self.decode.info.kv_address, LEASE_S)
        leg = await self.prefill.submit(prompt, replace(sampling, max_tokens=1), kv_transfer=transfer)
        taken = replace(transfer, producer=False, peer="p", peer_address=self.prefill.info.kv_address)
        return leg, await self.decode.submit(prompt, sampling, kv_transfer=taken)

    async def served(self, prompt: list[int]) -> Result:
        """Hand a request over and wait for its tokens."""
        leg, rest = await self.hand_over(prompt)
        result = await self.decode.result(rest)
        await self.prefill.result(leg)
        return result

    async def idle(self) -> None:
        """Every KV block of either engine is free."""
        await asyncio.gather(self.prefill.idle(), self.decode.idle())


def end_configs(model_folder: Path) -> list[VllmConfig]:
    """Both ends of a pair, each on a core of its own; without an exchange yet."""
    cores = sorted(os.sched_getaffinity(0))
    base = VllmConfig(
        model_dir=model_folder,
        max_model_len=1024,
        max_num_batched_tokens=256,
        max_num_seqs=16,
        kv_blocks=27,
        policy="vllm-v1",
    )
    return [replace(base, omp_threads_bind=str(core)) for core in (cores[0], cores[-1])]


@pytest_asyncio.fixture(scope="module", loop_scope="module", params=["gloo", "tcp"])
async def ends(request: pytest.FixtureRequest, model_folder: Path) -> AsyncIterator[Ends]:
    kv = KvConfig(checksum=True, backend=request.param)
    sides = [
        Harness(with_kv_exchange(config, name, kv))
        for name, config in zip(("p", "d"), end_configs(model_folder), strict=True)
    ]
    try:
        for side in sides:  # one after the other: they share the cores while they start
            await side.start()
        yield Ends(*sides)
    finally:
        for side in sides:
            await side.close()


def prompt_of(seed: int, length: int) -> list[int]:
    """Plain token ids, other ones for each seed."""
    draw = random.Random(seed)
    return [draw.randrange(300, 20_000) for _ in range(length)]


@pytest.mark.parametrize("length", [1, 20, 128, 129, 300, 700])
async def test_tokens_equal_those_of_one_engine_alone(ends: Ends, length: int) -> None:
    """Inside one block, exactly one block, one token more, and prompts longer than a chunk; one request at a time."""
    prompt = prompt_of(length, length)
    handed = await ends.served(prompt)
    assert not any(update.kv_recomputed for update in handed.updates)
    alone = await ends.prefill.generate(prompt, OUTPUT)
    assert handed.tokens == alone.tokens
    await ends.idle()


async def test_shared_prefix_is_sent_once(ends: Ends) -> None:
    shared = prompt_of(1, 256)
    first = await ends.served([*shared, *prompt_of(2, 60)])
    second = await ends.served([*shared, *prompt_of(3, 60)])
    assert first.updates[-1].cached_tokens < second.updates[-1].cached_tokens
    alone = await ends.prefill.generate([*shared, *prompt_of(3, 60)], OUTPUT)
    assert second.tokens == alone.tokens
    await ends.idle()


async def test_kv_that_does_not_come_is_recomputed(ends: Ends) -> None:
    prompt = prompt_of(4, 300)
    spec = KvTransferSpec("never-sent", 1, False, "p", ends.prefill.info.kv_address, LEASE_S)
    late = await ends.decode.generate(prompt, OUTPUT, kv_transfer=spec)
    assert any(update.kv_recomputed for update in late.updates)
    assert late.tokens == (await ends.prefill.generate(prompt, OUTPUT)).tokens
    await ends.idle()


async def test_kv_that_the_decode_side_refuses_is_let_go(ends: Ends) -> None:
    spec = KvTransferSpec("unwanted", 1, True, "d", ends.decode.info.kv_address, LEASE_S)
    done = await ends.prefill.generate(prompt_of(5, 300), replace(OUTPUT, max_tokens=1), kv_transfer=spec)
    assert done.finish_reason == "length"
    await ends.idle()


async def test_full_decode_side_takes_requests_as_memory_comes_free(ends: Ends) -> None:
    prompts = [prompt_of(10 + number, 500) for number in range(9)]  # 9 x 4 blocks and more, of 27
    halves = [await ends.hand_over(prompt) for prompt in prompts]
    for leg, rest in halves:
        result = await ends.decode.result(rest, timeout_s=200)
        assert (result.finish_reason, len(result.tokens)) == ("length", 10)
        await ends.prefill.result(leg, timeout_s=200)
    await ends.idle()


async def test_cancel_storm_leaves_nothing(ends: Ends) -> None:
    draw = random.Random(6)
    halves = []
    for number in range(200):
        leg, rest = await ends.hand_over(prompt_of(100 + number, draw.choice([10, 150, 400])))
        halves.append((leg, rest))
        await asyncio.sleep(draw.choice([0.0, 0.01]))
    for leg, rest in halves:
        await ends.prefill.engine.cancel(leg)
        await ends.decode.engine.cancel(rest)
    for leg, rest in halves:
        assert (await ends.prefill.result(leg)).finish_reason in ("cancelled", "length")
        assert (await ends.decode.result(rest)).finish_reason in ("cancelled", "length")
    await ends.idle()
    await test_tokens_equal_those_of_one_engine_alone(ends, 200)
