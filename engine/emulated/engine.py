"""The emulated engine: the Engine protocol around a core that sleeps."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from typing import TYPE_CHECKING

from engine.emulated.config import EmulatedConfig
from engine.emulated.core import EmulatedCore
from engine.kv.config import KvConfig, KvExchangeError
from engine.protocol import EngineError, EngineInfo, EngineRequest, SamplingSpec, StepEvent, StepSettings
from scheduling import registry
from scheduling.policy import BatchPolicy
from scheduling.time_model import TimeModel

if TYPE_CHECKING:
    from engine.emulated.exchange import KvExchange

log = logging.getLogger(__name__)

PolicyByName = Callable[[str, float | None], BatchPolicy]

_KV_POLL_S = 0.003
_UNREAD_STEPS = 256
_LAG_MADE_UP_S = 0.02
"""Steps follow each other without a gap even when the event loop wakes this much too late."""


class EmulatedEngine:
    """Sleeps by a time model and says what an output script says; see engine.protocol.Engine."""

    def __init__(self, config: EmulatedConfig, policy_by_name: PolicyByName = registry.batch_policy) -> None:
        """Take the settings; policy_by_name finds batch policies."""
        self._config = config
        self._policy_by_name = policy_by_name
        self._settings = StepSettings(policy=config.policy, time_margin=1.0)
        self._core: EmulatedCore | None = None
        self._loop_task: asyncio.Task[None] | None = None
        self._wake = asyncio.Event()
        self._steps: asyncio.Queue[StepEvent | EngineError | None] = asyncio.Queue(_UNREAD_STEPS)
        self._failure = ""
        self._exchange: KvExchange | None = None

    async def start(self) -> EngineInfo:
        """Begin to step; EngineError when the policy is unknown."""
        config = self._config
        if self._loop_task is None:
            policy = await self._find_policy(config.policy, None)
            if config.kv_exchange is not None:
                self._exchange = await asyncio.to_thread(_open_exchange, config, config.kv_exchange)
            self._core = EmulatedCore(config, policy, self._exchange)
            self._loop_task = asyncio.create_task(self._run(self._core), name="emulated engine")
        return EngineInfo(
            model=config.model,
            kv_blocks=config.kv_blocks,
            block_size=config.block_size,
            max_model_len=config.max_model_len,
            max_batch_tokens=config.max_batch_tokens,
            max_batch_requests=config.max_batch_requests,
            hardware=config.hardware,
            emulated=True,
            max_spec_tokens=config.max_spec_tokens,
            prefix_caching=config.prefix_caching,
            kv_address=self._exchange.address if self._exchange else "",
            kv_layout=self._exchange.layout if self._exchange else "",
        )

    async def submit(self, request: EngineRequest) -> None:
        """Queue a request; RequestRejected when it can never run."""
        self._running().submit(request)
        self._wake.set()

    async def cancel(self, request_id: str) -> None:
        """Stop a request at the end of the step."""
        self._running().cancel(request_id)
        self._wake.set()

    async def hand_over(self, request_id: str, kv_handle: str) -> None:
        """Nothing: the exchange between emulated engines tells its ends itself."""

    async def promote(self, request_id: str, first_token_due_s: float, next_token_due_s: float | None) -> None:
        """Make a best-effort request standard."""
        self._running().promote(request_id, first_token_due_s, next_token_due_s)

    async def relegate(self, request_id: str) -> None:
        """Make a standard request best effort."""
        self._running().relegate(request_id)

    async def configure(self, settings: StepSettings) -> None:
        """Change policy, margin or planning model; nothing changes when one of them is wrong."""
        core = self._running()
        policy, model = core.policy, core.planning_model
        name = settings.policy or self._settings.policy or registry.DEFAULT_POLICY
        floor = self._settings.best_effort_floor
        if settings.best_effort_floor is not None:
            floor = settings.best_effort_floor
        try:
            if settings.policy is not None or settings.best_effort_floor is not None:
                policy = await self._find_policy(name, floor)
            if settings.time_model_json is not None:
                model = TimeModel.from_json(settings.time_model_json).with_margin(model.margin)
            if settings.time_margin is not None:
                model = model.with_margin(settings.time_margin)
        except ValueError as error:
            raise EngineError(f"The settings cannot be used: {error}") from error
        core.policy, core.planning_model = policy, model
        self._settings = StepSettings(policy=name, best_effort_floor=floor)

    async def profile(self, quick: bool) -> str:
        """Return the time model that the engine sleeps by."""
        return self._config.true_time_model.to_json()

    async def events(self) -> AsyncIterator[StepEvent]:
        """Yield every step in order; the engine waits when they are not read."""
        while True:
            step = await self._steps.get()
            if step is None:
                return
            if isinstance(step, EngineError):
                raise step
            yield step

    async def close(self) -> None:
        """Stop stepping."""
        if self._loop_task is None:
            return
        task, self._loop_task, self._core = self._loop_task, None, None
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task
        if self._exchange is not None:
            await asyncio.to_thread(self._exchange.close)
        self._failure = self._failure or "the engine was closed"
        self._end_with(None)

    async def _run(self, core: EmulatedCore) -> None:
        try:
            await self._step_forever(core)
        except Exception as error:
            log.exception("the emulated engine failed")
            self._failure = f"the emulated engine failed: {error!r}"
            self._core = None
            self._end_with(EngineError(self._failure))

    async def _step_forever(self, core: EmulatedCore) -> None:
        number, ended_s, busy, free_said = 0, 0.0, False, core.pool.free
        while True:
            self._wake.clear()
            core.exchange_kv()
            updates = core.drop_cancelled()
            now_s = time.monotonic()
            started_s = ended_s if busy and now_s - ended_s < _LAG_MADE_UP_S else now_s
            batch = core.begin(started_s)
            busy = batch is not None
            if batch is not None:
                ended_s = started_s + batch.duration_s
                await asyncio.sleep(max(0.0, ended_s - time.monotonic()))
                updates += core.drop_cancelled() + core.finish(batch, ended_s)
            elif not updates and core.pool.free == free_said:
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(_KV_POLL_S if core.waits_for_kv else None):
                        await self._wake.wait()
                continue
            else:
                ended_s = now_s
            number, free_said = number + 1, core.pool.free
            await self._steps.put(
                StepEvent(
                    step=number,
                    ended_s=ended_s,
                    duration_s=batch.duration_s if batch else 0.0,
                    predicted_s=batch.predicted_s if batch else 0.0,
                    updates=tuple(updates),
                    free_blocks=free_said,
                    batch_tokens=batch.tokens if batch else 0,
                    batch_requests=batch.requests if batch else 0,
                    shape=batch.shape if batch else None,
                )
            )

    def _running(self) -> EmulatedCore:
        if self._core is None:
            raise EngineError(self._failure or "the engine is not started")
        return self._core

    async def _find_policy(self, name: str, best_effort_floor: float | None) -> BatchPolicy:
        """Return a policy that has planned before, so that its compiled parts are loaded."""
        try:
            policy = self._policy_by_name(name, best_effort_floor)
            await asyncio.to_thread(_warm_up, self._config, policy)
        except Exception as error:
            raise EngineError(f"The batch policy {name!r} cannot be used: {error}") from error
        return policy

    def _end_with(self, last: EngineError | None) -> None:
        """Let events() end after what was read so far; steps that nobody reads give way."""
        while self._steps.full():
            self._steps.get_nowait()
        self._steps.put_nowait(last)


def _open_exchange(config: EmulatedConfig, exchange: KvConfig) -> KvExchange:
    """Start to listen for KV; the import is here because it wants torch, which an engine without exchange does not."""
    try:
        from engine.emulated.exchange import KvExchange

        return KvExchange(config, exchange)
    except (ImportError, KvExchangeError) as error:
        raise EngineError(f"KV cannot be exchanged: {error}") from error


def _warm_up(config: EmulatedConfig, policy: BatchPolicy) -> None:
    """Let a policy plan a few steps that nobody waits for."""
    core = EmulatedCore(
        replace(config, kv_exchange=None, kv_blocks=64, max_model_len=64, block_size=16, queue_limit=8), policy
    )
    for number in range(3):
        core.submit(
            EngineRequest(
                request_id=f"warm-up-{number}",
                token_ids=(1, 1),
                prompt_tokens=2,
                sampling=SamplingSpec(max_tokens=3, ignore_eos=True),
                standard=number < 2,
                arrival_s=0.0,
                first_token_due_s=1.0,
                tpot_s=1.0,
            )
        )
    for _ in range(20):
        batch = core.begin(0.0)
        if batch is None:
            return
        core.finish(batch, 0.0)
