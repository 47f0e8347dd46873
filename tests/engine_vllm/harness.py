"""A running engine whose events are told apart by request."""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace

from engine.protocol import EngineInfo, EngineRequest, RequestUpdate, SamplingSpec, StepEvent, TokenLogprob
from engine.vllm.config import VllmConfig
from engine.vllm.engine import VllmEngine
from engine.vllm.messages import StepRecord

GREEDY = SamplingSpec(temperature=0.0, max_tokens=16)
_numbers = itertools.count()


@dataclass(slots=True)
class Result:
    """All that an engine said of one request."""

    tokens: list[int] = field(default_factory=list)
    text: str = ""
    logprobs: list[tuple[TokenLogprob, ...]] = field(default_factory=list)
    finish_reason: str = ""
    error: str = ""
    updates: list[RequestUpdate] = field(default_factory=list)
    done: asyncio.Event = field(default_factory=asyncio.Event)

    def take(self, update: RequestUpdate) -> None:
        """Add one update."""
        assert not self.finish_reason, "an update after the last one"
        self.tokens.extend(update.token_ids)
        self.text += update.text
        self.logprobs.extend(update.logprobs)
        self.updates.append(update)
        if update.finish_reason:
            self.finish_reason, self.error = update.finish_reason, update.error
            self.done.set()


class Harness:
    """One engine, one reader of its events."""

    def __init__(self, config: VllmConfig) -> None:
        """Nothing is started yet."""
        self.config = config
        self.engine = VllmEngine(config)
        self.info: EngineInfo
        self.results: dict[str, Result] = {}
        self.events: list[StepEvent] = []
        self.records: list[StepRecord] = []
        self.failure: Exception | None = None
        self.failed = asyncio.Event()
        self._moved = asyncio.Condition()
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Start the engine and read its events."""
        self.info = await self.engine.start()
        self.engine.record_listeners.append(self.records.append)
        self._task = asyncio.create_task(self._read())

    async def close(self) -> None:
        """Stop the engine."""
        await self.engine.close()
        if self._task is not None:
            await asyncio.wait_for(self._task, 10)

    async def _read(self) -> None:
        try:
            async for event in self.engine.events():
                self.events.append(event)
                for update in event.updates:
                    if update.request_id in self.results:
                        self.results[update.request_id].take(update)
                async with self._moved:
                    self._moved.notify_all()
        except Exception as error:
            self.failure = error
            self.failed.set()
            for result in self.results.values():
                result.done.set()

    async def until(self, condition: Callable[[], bool], timeout_s: float = 60.0) -> None:
        """Wait for something that an event makes true."""
        async with asyncio.timeout(timeout_s), self._moved:
            while not condition():
                await self._moved.wait()

    async def submit(self, tokens: list[int], sampling: SamplingSpec = GREEDY, **fields: object) -> str:
        """Submit a prompt and return the request's id."""
        request = make_request(tokens, sampling, **fields)
        self.results[request.request_id] = Result()
        try:
            await self.engine.submit(request)
        except Exception:
            del self.results[request.request_id]
            raise
        return request.request_id

    async def result(self, request_id: str, timeout_s: float = 90.0) -> Result:
        """Wait for the end of a request."""
        await asyncio.wait_for(self.results[request_id].done.wait(), timeout_s)
        return self.results[request_id]

    async def generate(self, tokens: list[int], sampling: SamplingSpec = GREEDY, **fields: object) -> Result:
        """Submit a prompt and wait for its end."""
        return await self.result(await self.submit(tokens, sampling, **fields))

    async def idle(self) -> int:
        """Wait until all KV is free, and return the free blocks."""
        await self.until(lambda: not self.events or self.events[-1].free_blocks == self.info.kv_blocks)
        return self.info.kv_blocks


def make_request(tokens: list[int], sampling: SamplingSpec = GREEDY, **fields: object) -> EngineRequest:
    """Standard request with loose SLOs."""
    now = time.monotonic()
    request = EngineRequest(
        request_id=f"r{next(_numbers)}",
        token_ids=tuple(tokens),
        prompt_tokens=len(tokens),
        sampling=sampling,
        standard=True,
        arrival_s=now,
        first_token_due_s=now + 30.0,
        tpot_s=1.0,
        expected_output_tokens=sampling.max_tokens or 64,
    )
    return replace(request, **fields)  # type: ignore[arg-type]
