"""The host in this process, around engines that fail in ways a worker process cannot be brought to."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator
from dataclasses import replace

import grpc
import pytest

from engine.emulated import EmulatedConfig, EmulatedEngine
from engine.protocol import Engine, EngineError, EngineRequest, StepSettings
from protos.slos.v1 import worker_pb2, worker_pb2_grpc
from scheduling.time_model import BatchShape, TimeModel
from services.common.rpc import add_port, new_server
from services.common.security import SecuritySettings
from services.common.store import Store, StoreSettings, TimeModelKey
from services.worker_host import wire
from services.worker_host.attach import WorkerService
from services.worker_host.host import HostSettings, WorkerHost
from services.worker_host.time_model import time_model
from tests.engine.policies import DecodeFirst
from tests.engine.test_emulated_engine import FAST, Failing, make_request
from tests.services.worker_host.driver import attach, submission

CONFIG = EmulatedConfig(time_model=FAST, kv_blocks=200)


class Clumsy(EmulatedEngine):
    """Has a defect that one request sets off, and keeps what it is told of KV."""

    handles: tuple[str, str] = ("", "")

    async def hand_over(self, request_id: str, kv_handle: str) -> None:
        self.handles = (request_id, kv_handle)

    async def submit(self, request: EngineRequest) -> None:
        if request.request_id == "poison":
            raise ZeroDivisionError("a defect")
        await super().submit(request)


@contextlib.asynccontextmanager
async def hosted(engine: Engine) -> AsyncIterator[tuple[WorkerHost, str, asyncio.Task[None]]]:
    """Serve an engine; gives the host, its address, and the task that ends with the engine."""
    info = await engine.start()
    host = WorkerHost(engine, wire.worker_info("w", "both", "hash", info, FAST.to_json()), "one", HostSettings())
    service = WorkerService()
    service.serve(host)
    server = new_server(SecuritySettings())
    worker_pb2_grpc.add_WorkerServicer_to_server(service, server)
    port = add_port(server, "127.0.0.1:0", SecuritySettings())
    await server.start()
    pump = asyncio.create_task(host.pump())
    try:
        yield host, f"127.0.0.1:{port}", pump
    finally:
        await server.stop(0)
        await engine.close()
        await asyncio.wait({pump}, timeout=5)


async def test_dead_engine_ends_the_pump_and_the_stream_is_told() -> None:
    async with hosted(EmulatedEngine(CONFIG, lambda name, floor: Failing(40))) as (host, address, pump):
        async with attach(address) as driver:
            await driver.submit(submission("a", max_tokens=2000))
            await asyncio.wait({pump}, timeout=20)
            with pytest.raises(EngineError, match="this policy has a bug"):
                pump.result()
            telling = asyncio.create_task(host.say_stopping("the engine failed"))
            status, _ = await driver.end()
            await telling
        assert status is grpc.StatusCode.OK
        assert driver.account.heard("stopping")
        assert "a" not in driver.account.finished


async def test_command_for_a_dead_engine_ends_the_stream_with_the_reason() -> None:
    async with hosted(EmulatedEngine(CONFIG, lambda name, floor: Failing(40))) as (_, address, pump):
        async with attach(address) as driver:
            await driver.submit(submission("a", max_tokens=2000))
            await asyncio.wait({pump}, timeout=20)
            await driver.submit(submission("b"))
            status, text = await driver.end()
        assert status is grpc.StatusCode.UNAVAILABLE
        assert "this policy has a bug" in text


async def test_defect_on_one_request_leaves_the_others_alone() -> None:
    async with (
        hosted(Clumsy(CONFIG, lambda name, floor: DecodeFirst())) as (host, address, _),
        attach(address) as driver,
    ):
        await driver.submit(submission("good", max_tokens=50))
        await driver.submit(submission("poison"))
        await driver.until(lambda account: "good" in account.finished and "poison" in account.rejected)
        assert driver.account.rejected["poison"].code == grpc.StatusCode.INTERNAL.value[0]
        assert host.requests == set()


async def test_where_kv_lies_is_passed_on_to_the_engine() -> None:
    engine = Clumsy(CONFIG, lambda name, floor: DecodeFirst())
    async with hosted(engine) as (_, address, _), attach(address) as driver:
        await driver.send(hand_over=worker_pb2.HandOver(request_id="a", kv_handle="there"))
        await driver.submit(submission("b", max_tokens=2))
        await driver.until(lambda account: "b" in account.finished)
    assert engine.handles == ("a", "there")


async def test_requests_of_the_engines_own_are_not_shown() -> None:
    engine = EmulatedEngine(CONFIG, lambda name, floor: DecodeFirst())
    async with hosted(engine) as (_, address, _), attach(address) as driver:
        await engine.submit(make_request("own", max_tokens=5))
        await driver.submit(submission("a", max_tokens=20))
        await driver.until(lambda account: "a" in account.finished)
        assert driver.account.tokens.keys() == {"a"}


async def test_a_drifted_engine_is_planned_with_a_new_time_model() -> None:
    """Every step takes 1.6 times what the worker has announced: it says so, and predicts them again."""
    engine = EmulatedEngine(replace(CONFIG, time_scale=1.6), lambda name, floor: DecodeFirst())
    async with hosted(engine) as (host, address, _), attach(address) as driver:
        await engine.configure(StepSettings(time_model_json=FAST.to_json(), time_margin=1.25))
        await driver.submit(submission("a", max_tokens=1500))
        await driver.until(lambda account: account.heard("time_model_changed"))
        changed = next(e for e in driver.account.others if e.WhichOneof("event") == "time_model_changed")
        assert changed.time_model_changed.drift == pytest.approx(1.6, rel=0.01)
        assert host.info.time_model_json == changed.time_model_changed.time_model_json
        model = TimeModel.from_json(host.info.time_model_json)
        shape = BatchShape(1, 1)
        assert model.duration_s(shape) == pytest.approx(1.6 * FAST.duration_s(shape), rel=0.02)
        assert host.refits == 1
        core = engine._core
        assert core is not None
        assert core.planning_model.lines == model.lines
        assert core.planning_model.margin == 1.25


async def test_worker_that_still_loads_tells_controllers_to_wait() -> None:
    server = new_server(SecuritySettings())
    worker_pb2_grpc.add_WorkerServicer_to_server(WorkerService(), server)
    port = add_port(server, "127.0.0.1:0", SecuritySettings())
    await server.start()
    try:
        with pytest.raises((grpc.aio.AioRpcError, EOFError), match="still loading"):
            async with attach(f"127.0.0.1:{port}"):
                pass
    finally:
        await server.stop(0)


async def test_time_model_is_fitted_once_and_again_when_asked_or_unreadable(
    own_store_settings: StoreSettings,
) -> None:
    store = Store(own_store_settings)
    first = EmulatedEngine(CONFIG, lambda name, floor: DecodeFirst())
    other = EmulatedEngine(replace(CONFIG, time_scale=2.0), lambda name, floor: DecodeFirst())
    info = await first.start()
    await other.start()
    try:
        fitted = await time_model(first, info, "key", store, profile_anew=False, quick=True)
        assert await time_model(other, info, "key", store, profile_anew=False, quick=True) == fitted
        assert await time_model(other, info, "another key", store, profile_anew=False, quick=True) != fitted
        assert await time_model(other, info, "", store, profile_anew=False, quick=True) != fitted
        anew = await time_model(other, info, "key", store, profile_anew=True, quick=True)
        assert anew != fitted
        key = TimeModelKey(info.model, info.hardware, "key")
        assert await store.time_models.get(key) == anew
        await store.time_models.set(key, "rubbish")
        assert await time_model(first, info, "key", store, profile_anew=False, quick=True) == fitted
    finally:
        await first.close()
        await other.close()
        await store.close()


async def test_time_model_needs_no_redis() -> None:
    store = Store(StoreSettings(url="redis://127.0.0.1:1/0"))
    engine = EmulatedEngine(CONFIG, lambda name, floor: DecodeFirst())
    info = await engine.start()
    began = time.monotonic()
    assert "lines" in await time_model(engine, info, "key", store, profile_anew=False, quick=True)
    assert time.monotonic() - began < 30
    await engine.close()
    await store.close()
