"""Two emulated engines hand KV over, over the real transport; blocks prove whose KV they hold."""

from __future__ import annotations

import asyncio
import contextlib
import random
import time
from collections.abc import AsyncIterator
from dataclasses import replace

import pytest

from engine.emulated import EmulatedConfig, EmulatedEngine
from engine.kv.config import KvConfig
from engine.protocol import EngineError, EngineRequest, KvTransferSpec, RequestRejected, RequestUpdate, SamplingSpec
from scheduling.time_model import TimeModel
from tests.engine.policies import DecodeFirst
from tests.engine.test_emulated_core import alone

KV = KvConfig(heartbeat_s=0.1, lease_s=1.0, io_timeout_s=1.0, message_bytes=4096, checksum=True)
FAST = TimeModel(((0.0005, 1e-6, 0.0, 0.0, 0.0, 0.0),), source="assumed: for tests")
CONFIG = EmulatedConfig(
    time_model=FAST,
    kv_blocks=120,
    block_size=4,
    max_model_len=300,
    max_batch_tokens=32,
    output_mean=12.0,
    kv_exchange=KV,
)


class Reader:
    """An engine with one reader of its events."""

    def __init__(self, config: EmulatedConfig) -> None:
        self.config = config
        self.engine = EmulatedEngine(config, lambda name, floor: DecodeFirst())
        self.updates: dict[str, list[RequestUpdate]] = {}
        self.free = config.kv_blocks
        self.address = ""
        self._moved = asyncio.Event()
        self.task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        self.address = (await self.engine.start()).kv_address
        self.task = asyncio.create_task(self._read())

    async def _read(self) -> None:
        try:
            async for step in self.engine.events():
                self.free = step.free_blocks
                for update in step.updates:
                    self.updates.setdefault(update.request_id, []).append(update)
                self._moved.set()
        finally:
            self._moved.set()

    def tokens(self, request_id: str) -> list[int]:
        return [token for update in self.updates.get(request_id, []) for token in update.token_ids]

    def reason(self, request_id: str) -> str:
        return self.updates[request_id][-1].finish_reason if request_id in self.updates else ""

    async def until(self, done: object, timeout_s: float = 20.0) -> None:
        deadline_s = time.monotonic() + timeout_s
        while not done():  # type: ignore[operator]
            assert self.task is not None
            if self.task.done():
                self.task.result()
            assert time.monotonic() < deadline_s, f"free {self.free}, {self.updates.keys()}"
            self._moved.clear()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._moved.wait(), 0.05)

    async def finished(self, *request_ids: str) -> None:
        await self.until(lambda: all(self.reason(request_id) for request_id in request_ids))

    async def all_free(self) -> None:
        """Every block is free again, whatever was on its way."""
        await self.until(lambda: self.free == self.config.kv_blocks)

    async def close(self) -> None:
        await self.engine.close()
        if self.task is not None:
            await asyncio.wait({self.task}, timeout=5)


@contextlib.asynccontextmanager
async def pair(
    prefill: EmulatedConfig = CONFIG, decode: EmulatedConfig = CONFIG
) -> AsyncIterator[tuple[Reader, Reader]]:
    ends = (Reader(replace(prefill, worker_id="p")), Reader(replace(decode, worker_id="d")))
    for end in ends:
        await end.start()
    try:
        yield ends
    finally:
        for end in ends:
            await end.close()


def make(request_id: str, prompt: list[int], max_tokens: int = 20, **changes: object) -> EngineRequest:
    now_s = time.monotonic()
    request = EngineRequest(
        request_id=request_id,
        token_ids=tuple(prompt),
        prompt_tokens=len(prompt),
        sampling=SamplingSpec(temperature=0.0, ignore_eos=True, max_tokens=max_tokens),
        standard=True,
        arrival_s=now_s,
        first_token_due_s=now_s + 10,
        tpot_s=1.0,
    )
    return replace(request, **changes)


def halves(request: EngineRequest, prefill: Reader, decode: Reader, transfer: str = "") -> tuple[EngineRequest, ...]:
    """A request's two halves, as a controller submits them."""
    spec = KvTransferSpec(transfer or f"t-{request.request_id}", 1, True, "d", decode.address, 1.0)
    leg = replace(
        request,
        request_id=request.request_id + "~p",
        prompt_tokens=len(request.token_ids),
        sampling=SamplingSpec(temperature=0.0, max_tokens=1, ignore_eos=True),
        kv_transfer=spec,
    )
    return leg, replace(request, kv_transfer=replace(spec, producer=False, peer="p", peer_address=prefill.address))


def prompt_of(draw: random.Random, longest: int = 90) -> list[int]:
    return [draw.randint(8, 99) for _ in range(draw.randint(1, longest))]


def expected(request: EngineRequest) -> list[int]:
    said = alone(replace(request, kv_transfer=None), replace(CONFIG, kv_exchange=None))
    return [token for update in said for token in update.token_ids]


async def test_handed_over_request_says_what_it_says_alone_without_prefill() -> None:
    draw = random.Random(1)
    requests = [make(f"r{number}", prompt_of(draw)) for number in range(12)]
    roomy = replace(CONFIG, kv_blocks=400)  # an eviction would mean a prefill
    async with pair(roomy, roomy) as (prefill, decode):
        for request in requests:
            leg, rest = halves(request, prefill, decode)
            await decode.engine.submit(rest)
            await prefill.engine.submit(leg)
        await decode.finished(*(request.request_id for request in requests))
        for request in requests:
            assert decode.tokens(request.request_id) == expected(request)
            first = decode.updates[request.request_id][0]
            assert not first.kv_recomputed
            assert first.token_ids, "the first step computes one token and no prompt"
        await prefill.all_free()
        await decode.all_free()


async def test_prompt_that_the_decode_side_holds_is_not_sent_again() -> None:
    request = make("a", list(range(8, 60)))
    async with pair() as (prefill, decode):
        for name in ("a", "b"):
            leg, rest = halves(replace(request, request_id=name), prefill, decode)
            await decode.engine.submit(rest)
            await prefill.engine.submit(leg)
            await decode.finished(name)
            await prefill.finished(f"{name}~p")
        assert decode.updates["b"][0].cached_tokens == 48
        assert decode.tokens("b") == decode.tokens("a") == expected(request)
        await prefill.all_free()
        await decode.all_free()


@pytest.mark.parametrize("seed", range(6))
async def test_cancels_on_either_side_leak_nothing_and_spoil_no_other(seed: int) -> None:
    draw = random.Random(seed)
    small = replace(CONFIG, kv_blocks=60)
    async with pair(CONFIG, small) as (prefill, decode):
        requests = [make(f"r{number}", prompt_of(draw), standard=draw.random() < 0.7) for number in range(25)]
        cancelled = set()
        for request in requests:
            leg, rest = halves(request, prefill, decode)
            parts = [(prefill, leg), (decode, rest)]
            draw.shuffle(parts)
            for end, part in parts:
                await end.engine.submit(part)
                await asyncio.sleep(draw.choice([0.0, 0.0, 0.003]))
            if draw.random() < 0.4:
                for end, part in draw.sample(parts, draw.randint(1, 2)):
                    cancelled.add(part.request_id)
                    await asyncio.sleep(draw.choice([0.0, 0.002, 0.01]))
                    await end.engine.cancel(part.request_id)
        await decode.finished(*(request.request_id for request in requests))
        await prefill.finished(*(f"{request.request_id}~p" for request in requests))
        for request in requests:
            if decode.reason(request.request_id) != "cancelled":
                assert decode.tokens(request.request_id) == expected(request)
            else:
                assert request.request_id in cancelled
        await prefill.all_free()
        await decode.all_free()


async def test_dead_prefill_engine_means_recomputing_and_not_losing() -> None:
    slow = replace(CONFIG, time_scale=40.0)
    draw = random.Random(3)
    requests = [make(f"r{number}", prompt_of(draw)) for number in range(8)]
    async with pair(slow, CONFIG) as (prefill, decode):
        for request in requests:
            leg, rest = halves(request, prefill, decode)
            await decode.engine.submit(rest)
            await prefill.engine.submit(leg)
        await asyncio.sleep(0.1)
        await prefill.close()
        await decode.finished(*(request.request_id for request in requests))
        assert any(decode.updates[request.request_id][-1].kv_recomputed for request in requests)
        for request in requests:
            assert decode.tokens(request.request_id) == expected(request)
        await decode.all_free()


async def test_kv_that_never_comes_is_recomputed_after_its_lease() -> None:
    async with pair() as (prefill, decode):
        request = make("r", list(range(8, 50)))
        await decode.engine.submit(halves(request, prefill, decode)[1])
        await decode.finished("r")
        assert decode.tokens("r") == expected(request)
        assert decode.updates["r"][-1].kv_recomputed
        await decode.all_free()


async def test_kv_that_nobody_wants_is_let_go_after_its_lease() -> None:
    async with pair() as (prefill, decode):
        await prefill.engine.submit(halves(make("r", list(range(8, 50))), prefill, decode)[0])
        await prefill.finished("r~p")
        await prefill.all_free()


async def test_full_decode_side_takes_requests_one_after_the_other() -> None:
    draw = random.Random(5)
    requests = [make(f"r{number}", [draw.randint(8, 99) for _ in range(60)], 10) for number in range(10)]
    async with pair(replace(CONFIG, kv_blocks=300), replace(CONFIG, kv_blocks=20)) as (prefill, decode):
        for request in requests:
            leg, rest = halves(request, prefill, decode)
            await decode.engine.submit(rest)
            await prefill.engine.submit(leg)
        await decode.finished(*(request.request_id for request in requests))
        for request in requests:
            assert decode.tokens(request.request_id) == expected(request)
        await prefill.all_free()
        await decode.all_free()


async def test_wrong_kv_is_noticed() -> None:
    """Without this, none of the tests above would prove anything about the bytes."""
    async with pair() as (prefill, decode):
        leg, _ = halves(make("a", [9] * 30), prefill, decode, transfer="same")
        _, rest = halves(make("b", [10] * 30), prefill, decode, transfer="same")
        await prefill.engine.submit(leg)
        await decode.engine.submit(rest)
        with pytest.raises(EngineError, match="KV of something else"):
            await decode.finished("b")


async def test_same_transfer_twice_is_rejected() -> None:
    async with pair() as (prefill, decode):
        leg, _ = halves(make("a", [9] * 30), prefill, decode, transfer="same")
        await prefill.engine.submit(leg)
        with pytest.raises(RequestRejected, match="offered already"):
            await prefill.engine.submit(replace(leg, request_id="other"))


async def test_awaited_request_can_be_promoted_relegated_and_cancelled() -> None:
    async with pair() as (prefill, decode):
        _, rest = halves(make("a", list(range(8, 50)), standard=False), prefill, decode)
        await decode.engine.submit(rest)
        await decode.engine.promote("a", time.monotonic() + 5, None)
        await decode.engine.relegate("a")
        await asyncio.sleep(0.02)
        await decode.engine.cancel("a")
        await decode.finished("a")
        assert decode.reason("a") == "cancelled"
        await decode.all_free()
