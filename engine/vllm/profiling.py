"""Measure how long steps of many shapes take on an idle engine.

Shapes are made with ordinary requests under vLLM's own scheduler: prompts alone, prompts over a cached prefix, sets of
decodes of growing size over short and long contexts, and prompts that join running decodes. Every step of all this is
a sample, whatever vLLM packed into it.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import random
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field

from engine.protocol import EngineError, EngineInfo, EngineRequest, SamplingSpec
from engine.vllm.messages import StepRecord
from scheduling.time_model import BatchShape, TimeModel, fit

logger = logging.getLogger(__name__)

Sample = tuple[BatchShape, float]
QUICK_S = 14.0
FULL_S = 120.0
FIRST_TOKEN, LAST_TOKEN = 100, 1000
"""Prompts are made of ids between these: every vocabulary has them and few are special."""


@dataclass(frozen=True, slots=True)
class Experiment:
    """Requests that are sent together: prompts of these lengths, each with `outputs` tokens.

    shared: tokens at the start of every prompt that are the same, and in the prefix cache already. joining: lengths of
    prompts that come one by one while the others decode.
    """

    prompts: tuple[int, ...]
    outputs: int = 1
    shared: int = 0
    joining: tuple[int, ...] = ()

    @property
    def tokens(self) -> int:
        """KV tokens that the experiment needs at most."""
        return sum(self.prompts) + sum(self.joining) + self.outputs * (len(self.prompts) + len(self.joining))


@dataclass(slots=True)
class Profiler:
    """Runs experiments on an engine; `take` wants every record of the step scheduler."""

    submit: Callable[[EngineRequest], Awaitable[None]]
    info: EngineInfo
    samples: list[Sample] = field(default_factory=list)
    _pending: set[str] = field(default_factory=set)
    _steps: int = 0
    _moved: asyncio.Event = field(default_factory=asyncio.Event)
    _random: random.Random = field(default_factory=lambda: random.Random(time.time_ns()))
    _numbers: itertools.count[int] = field(default_factory=itertools.count)

    def take(self, record: StepRecord) -> None:
        """Take the record of a step."""
        if record.batch_tokens and record.duration_s > 0:
            self.samples.append((BatchShape(*record.shape), record.duration_s))
        self._steps += record.batch_tokens > 0
        self._pending.difference_update(r.request_id for r in record.requests if r.gone)
        self._moved.set()

    async def run(self, quick: bool) -> list[Sample]:
        """Run experiments until the time for them is over, each at least once if it can be; samples in random order.

        The random order makes every fifth sample, which the fit holds out, a fair one.
        """
        ends_s = time.monotonic() + (QUICK_S if quick else FULL_S)
        plan = experiments(self.info, quick)
        await self._run_one(Experiment((min(32, self.info.max_batch_tokens),)))
        self.samples.clear()
        rounds = 0
        while rounds == 0 or (not quick and time.monotonic() < ends_s):
            for experiment in plan:
                if time.monotonic() > ends_s and len(self.samples) >= 50:
                    break
                await self._run_one(experiment)
            rounds += 1
        self._random.shuffle(self.samples)
        return self.samples

    async def _run_one(self, experiment: Experiment) -> None:
        prefix = self._words(experiment.shared)
        if prefix:
            await self._send(prefix, 1)
            await self._until_done()
        for length in experiment.prompts:
            await self._send(prefix + self._words(length - len(prefix)), experiment.outputs)
        for length in experiment.joining:
            step = self._steps
            await self._until(lambda step=step: self._steps >= step + 2 or not self._pending)
            await self._send(self._words(length), experiment.outputs)
        await self._until_done()

    def _words(self, count: int) -> list[int]:
        return [self._random.randrange(FIRST_TOKEN, LAST_TOKEN) for _ in range(count)]

    async def _send(self, tokens: list[int], outputs: int) -> None:
        request_id = f"profile-{next(self._numbers)}"
        self._pending.add(request_id)
        await self.submit(loose_request(request_id, tokens, outputs))

    async def _until_done(self) -> None:
        await self._until(lambda: not self._pending)

    async def _until(self, condition: Callable[[], bool]) -> None:
        async with asyncio.timeout(300.0):
            while not condition():
                self._moved.clear()
                await self._moved.wait()


def fitted(samples: list[Sample], took_s: float) -> TimeModel:
    """Fit a time model to a profile that took so many seconds; EngineError when the measurements do not suffice."""
    try:
        model = fit(samples)
    except ValueError as error:
        raise EngineError(f"the profile does not give a time model: {error}") from error
    quality = model.quality
    assert quality is not None
    logger.info(
        "profile: %d batches in %.1f s; held out: R^2 %.3f, relative error p50 %.1f %%, p99 %.1f %%",
        len(samples),
        took_s,
        quality.r2,
        100 * quality.p50_relative_error,
        100 * quality.p99_relative_error,
    )
    return model


def loose_request(request_id: str, tokens: Sequence[int], outputs: int) -> EngineRequest:
    """Return a request of the engine's own, which no objective binds: so many outputs, whatever they are."""
    now = time.monotonic()
    return EngineRequest(
        request_id=request_id,
        token_ids=tuple(tokens),
        prompt_tokens=len(tokens),
        sampling=SamplingSpec(temperature=0.0, max_tokens=outputs, ignore_eos=True),
        standard=True,
        arrival_s=now,
        first_token_due_s=now + 60.0,
        tpot_s=1.0,
    )


def experiments(info: EngineInfo, quick: bool) -> list[Experiment]:
    """Experiments that fit the engine, those that tell most first."""
    longest = min(info.max_batch_tokens, info.max_model_len - 16)
    context = min(4 * info.block_size if quick else 16 * info.block_size, info.max_model_len // 2)
    context -= context % info.block_size
    chunks = (
        [16, 64, 160, 32, 256, 112, 384] if quick else [2**n for n in range(3, 16)] + [3 * 2**n for n in range(3, 14)]
    )
    counts = [1, 4, 16, 2, 8] if quick else [2**n for n in range(10)] + [3 * 2**n for n in range(1, 8)]
    wanted = []
    for chunk, count in itertools.zip_longest(chunks, counts):
        if chunk is not None and chunk <= longest:
            wanted.append(Experiment((chunk,)))
        if count is not None and count <= info.max_batch_requests:
            wanted.append(Experiment((8,) * count, outputs=6))
            if chunk is not None:
                wanted.append(Experiment((12,) * count, outputs=8, joining=(min(chunk, longest), 24)))
    for chunk, count in ((32, 1), (96, 4), (200, 8), (16, 2)):
        if context and count <= info.max_batch_requests:
            wanted.append(Experiment((context + 8,) * count, outputs=6, shared=context))
            wanted.append(Experiment((context + chunk,), shared=context))
    room = 0.8 * info.kv_blocks * info.block_size
    padded = [(e, e.tokens + info.block_size * (len(e.prompts) + len(e.joining))) for e in wanted]
    return [e for e, tokens in padded if tokens < room and max(e.prompts) + e.outputs < info.max_model_len]
