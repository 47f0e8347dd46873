"""The real engine: vLLM behind our Engine protocol."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import shutil
import tempfile
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import TYPE_CHECKING

from engine.protocol import (
    EngineError,
    EngineInfo,
    EngineRequest,
    RequestRejected,
    StepEvent,
    StepSettings,
)
from engine.vllm import adapter, checks, cores, policies
from engine.vllm.config import VllmConfig
from engine.vllm.joiner import StepJoiner
from engine.vllm.kv.held import HeldRequests
from engine.vllm.messages import Configure, Promote, Relegate, StepRecord
from engine.vllm.profiling import Profiler, fitted, loose_request
from engine.vllm.sampling import sampling_params
from engine.vllm.step_socket import StepSocketClient
from scheduling.time_model import TimeModel

if TYPE_CHECKING:
    from vllm.v1.engine.async_llm import AsyncLLM

logger = logging.getLogger(__name__)

WARM_UP_TOKENS = (100, 512)
SHUTDOWN_TIMEOUT_S = 15.0


class VllmEngine:
    """One vLLM engine: AsyncLLM in this process, its EngineCore in another; see engine.protocol.Engine.

    record_listeners are called with every record of the step scheduler, for benches and tests.
    """

    def __init__(self, config: VllmConfig) -> None:
        """Nothing is started yet."""
        self._config = config
        self._llm: AsyncLLM | None = None
        self._client: StepSocketClient | None = None
        self._joiner: StepJoiner | None = None
        self._reader: asyncio.Task[None] | None = None
        self._folder: Path | None = None
        self._wake = asyncio.Event()
        self._info: EngineInfo | None = None
        self._policy = config.policy
        self._held = HeldRequests(self._add, lambda request_id, why: self._end_unrun(request_id, "error", why))
        self._submitting: set[str] = set()
        self._cancelled_early: set[str] = set()
        self._failure = ""
        self._closed = False
        self._profiling = False
        self._free_cores: Callable[[], None] = lambda: None
        self.record_listeners: list[Callable[[StepRecord], None]] = []

    @property
    def process_id(self) -> int:
        """Process of vLLM's EngineCore, which steps the model; EngineError before start."""
        if self._client is None:
            raise EngineError("the engine is not started: await start() first")
        return self._client.facts.pid

    async def start(self) -> EngineInfo:
        """Load the model and warm up; EngineError when it cannot."""
        config = self._config
        if self._llm is not None or self._closed:
            raise EngineError("an engine is started once; make a new one")
        checks.check_model_dir(config.model_dir)
        checks.check_policy(config.policy, config.best_effort_floor)
        adapter.set_environment(config)
        began = time.monotonic()
        try:
            async with asyncio.timeout(config.start_timeout_s):
                client = await self._launch()
                logger.info("model loaded after %.1f s; warming up", time.monotonic() - began)
                await self._warm_up()
        except TimeoutError as error:
            await self.close()
            raise EngineError(f"vLLM was not up after {config.start_timeout_s:.0f} s; see its log") from error
        except BaseException:
            await self.close()
            raise
        logger.info("engine is ready after %.1f s", time.monotonic() - began)
        facts = client.facts
        self._info = EngineInfo(
            model=config.model_dir.name,
            kv_blocks=facts.total_blocks,
            block_size=facts.block_size,
            max_model_len=config.max_model_len,
            max_batch_tokens=config.max_num_batched_tokens,
            max_batch_requests=config.max_num_seqs,
            hardware=config.hardware or checks.hardware(),
            emulated=False,
            max_spec_tokens=facts.max_spec_tokens,
            prefix_caching=config.prefix_caching,
            kv_address=config.kv_address,
            kv_layout=adapter.kv_layout(config, facts.block_size) if config.kv_connector else "",
        )
        return self._info

    async def _launch(self) -> StepSocketClient:
        """Start vLLM's processes and connect to the step scheduler in them."""
        config = self._config
        logger.info("starting vLLM %s on %s", adapter.version(), config.model_dir)
        self._folder = Path(tempfile.mkdtemp(prefix="slos-"))
        socket_path = str(self._folder / "steps.sock")
        try:
            self._llm = await asyncio.to_thread(adapter.make_llm, config, socket_path, self._on_output)
        except Exception as error:
            raise EngineError(f"vLLM did not start: {error}; its log above says why") from error
        if adapter.is_cpu():
            self._free_cores = cores.keep_to(config.other_cores)
        self._client = await StepSocketClient.connect(socket_path, timeout_s=30.0)
        self._joiner = StepJoiner(config.text_lag_s, self._client.facts.total_blocks)
        self._reader = asyncio.create_task(self._read_records(), name="vllm-step-records")
        return self._client

    async def submit(self, request: EngineRequest) -> None:
        """Queue a request; RequestRejected when it can never run, for example a duplicate id."""
        _, joiner = self._running()
        if request.request_id in joiner:
            raise RequestRejected("ALREADY_EXISTS", f"request {request.request_id!r} is on this engine already")
        connector, transfer = self._config.kv_connector, request.kv_transfer
        if connector is not None and connector.needs_handle and transfer is not None and not transfer.producer:
            sampling_params(self._config, request)  # what is wrong with it shows now
            joiner.open(request.request_id)
            self._held.hold(request)
            return
        joiner.open(request.request_id)
        await self._add(request)

    async def hand_over(self, request_id: str, kv_handle: str) -> None:
        """Let a decode half begin that waited for this word; without a handle it computes its prompt."""
        self._running()
        await self._held.release(request_id, kv_handle)

    async def _add(self, request: EngineRequest, kv_handle: str = "") -> None:
        """Hand an opened request to vLLM."""
        llm, joiner = self._running()
        self._submitting.add(request.request_id)
        try:
            await adapter.add_request(llm, self._config, request, kv_handle)
        except BaseException as error:
            self._cancelled_early.discard(request.request_id)
            joiner.discard(request.request_id)
            if isinstance(error, asyncio.CancelledError):
                # vLLM may have it already.
                await asyncio.shield(llm.abort(request.request_id))
            raise
        finally:
            self._submitting.discard(request.request_id)
        if request.request_id in self._cancelled_early:
            self._cancelled_early.discard(request.request_id)
            await llm.abort(request.request_id)

    async def cancel(self, request_id: str) -> None:
        """Stop a request and free its KV; its last update has finish_reason "cancelled"."""
        llm, joiner = self._running()
        if self._held.drop(request_id):
            self._end_unrun(request_id, "cancelled")
        elif request_id in self._submitting:
            self._cancelled_early.add(request_id)
        elif request_id in joiner:
            await llm.abort(request_id)

    async def promote(self, request_id: str, first_token_due_s: float, next_token_due_s: float | None) -> None:
        """Make a best-effort request standard, from the next step on."""
        await self._command(Promote(request_id, first_token_due_s, next_token_due_s))

    async def relegate(self, request_id: str) -> None:
        """Make a standard request best effort, from the next step on."""
        await self._command(Relegate(request_id))

    async def configure(self, settings: StepSettings) -> None:
        """Change the step scheduler's settings from the next step on; EngineError when one is not valid."""
        if settings.policy is not None or settings.best_effort_floor is not None:
            checks.check_policy(settings.policy or self._policy, settings.best_effort_floor)
        try:
            model = TimeModel.from_json(settings.time_model_json) if settings.time_model_json is not None else None
            if settings.time_margin is not None:
                (model or TimeModel(((1.0, 0.0, 0.0, 0.0, 0.0, 0.0),))).with_margin(settings.time_margin)
        except ValueError as error:
            raise EngineError(f"the step scheduler cannot take these settings: {error}") from error
        await self._command(
            Configure(
                policy=settings.policy,
                time_margin=settings.time_margin,
                best_effort_floor=settings.best_effort_floor,
                time_model_json=settings.time_model_json,
            )
        )
        self._policy = settings.policy or self._policy

    async def profile(self, quick: bool) -> str:
        """Run a profile of batches on the idle engine and return the fitted time model as JSON.

        Takes about 15 s (quick) or two minutes; the policy is put aside meanwhile. EngineError when the engine is
        busy, or when the measurements do not suffice.
        """
        llm, joiner = self._running()
        if joiner.busy:
            raise EngineError("the engine is serving requests; a profile needs it idle")
        assert self._info is not None
        profiler = Profiler(lambda request: adapter.add_request(llm, self._config, request), self._info)
        began = time.monotonic()
        await self._command(Configure(policy=policies.STOCK))
        self._profiling = True
        self.record_listeners.append(profiler.take)
        try:
            samples = await profiler.run(quick)
        except TimeoutError as error:
            raise EngineError("the profile got stuck: a batch of it took minutes") from error
        finally:
            self.record_listeners.remove(profiler.take)
            self._profiling = False
            if not self._failure:
                await self._command(Configure(policy=self._policy))
        return fitted(samples, time.monotonic() - began).to_json()

    async def events(self) -> AsyncIterator[StepEvent]:
        """Yield every step in order; ends when the engine closes, raises EngineError when it dies."""
        if self._joiner is None:
            raise EngineError("the engine is not started: await start() first")
        joiner = self._joiner
        while True:
            self._wake.clear()
            for event in joiner.take(time.monotonic()):
                yield event
            if self._failure:
                raise EngineError(self._failure)
            if self._closed:
                return
            deadline = joiner.next_deadline_s()
            wait_s = None if deadline is None else max(deadline - time.monotonic(), 0.001)
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._wake.wait(), wait_s)

    async def close(self) -> None:
        """Stop the engine and its processes; safe to call twice."""
        if self._closed:
            return
        self._closed = True
        self._held.close()
        if self._llm is not None:
            if self._llm.output_handler is not None:
                self._llm.output_handler.cancel()
            await asyncio.to_thread(self._llm.shutdown, SHUTDOWN_TIMEOUT_S)
        self._free_cores()
        if self._reader is not None:
            self._reader.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._reader
        if self._client is not None:
            await self._client.close()
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)
        if self._joiner is not None:
            self._joiner.fail_all("the engine was closed")
        self._wake.set()

    def _running(self) -> tuple[AsyncLLM, StepJoiner]:
        if self._failure:
            raise EngineError(self._failure)
        if self._llm is None or self._joiner is None or self._closed:
            raise EngineError("the engine is not running: await start() first, and do not use it after close()")
        return self._llm, self._joiner

    async def _command(self, command: Promote | Relegate | Configure) -> None:
        self._running()
        assert self._client is not None
        await self._client.send(command)

    def _end_unrun(self, request_id: str, finish_reason: str, error: str = "") -> None:
        """Say that a request has ended that vLLM does not have."""
        assert self._joiner is not None
        if request_id not in self._joiner:
            self._joiner.open(request_id)
        self._joiner.add_output(request_id, finish_reason=finish_reason, error=error)
        self._wake.set()

    def _on_output(self, request_id: str, output: adapter.Output) -> None:
        """Take output of vLLM; called in the event loop."""
        assert self._joiner is not None
        self._joiner.add_output(
            request_id,
            output.token_ids,
            output.text,
            output.logprobs,
            output.finish_reason,
            output.error,
            output.kv_handle,
        )
        self._wake.set()

    async def _read_records(self) -> None:
        """Take records until the socket closes, which is how the death of the engine process shows first."""
        assert self._client is not None
        assert self._joiner is not None
        async for record in self._client.records():
            if not self._profiling:
                # Steps of a profile were predicted with what it replaces: whoever learns from steps must not see them.
                self._joiner.add_record(record, time.monotonic())
            for listener in self.record_listeners:
                listener(record)
            self._wake.set()
        if not self._closed:
            self._fail("the engine process ended unexpectedly; see its log, and start the engine again")

    def _fail(self, reason: str) -> None:
        assert self._joiner is not None
        self._failure = reason
        logger.error("%s", reason)
        self._joiner.fail_all(reason)
        self._wake.set()

    async def _warm_up(self) -> None:
        """Run a short and a longer prompt: what is compiled or paged in late is, before anybody waits for it.

        The first batch must not be a tiny one: on AMX hosts that died with an illegal instruction.
        """
        for size in WARM_UP_TOKENS:
            began = time.monotonic()
            length = min(size, self._config.max_model_len - 4)
            await self.submit(loose_request(f"warm-up-{size}", range(10, 10 + length), 3))
            async for event in self.events():
                if any(update.finish_reason for update in event.updates):
                    break
            logger.info("warm-up with %d tokens took %.1f s", length, time.monotonic() - began)
