"""The worker process: start, serve, drain, end; the exit code says how it ended."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
import socket
import uuid
from collections.abc import Coroutine
from dataclasses import dataclass, field, replace
from typing import Any

from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from engine.protocol import Engine, EngineError
from protos.slos.v1 import worker_pb2, worker_pb2_grpc
from services.common import metrics
from services.common.rpc import add_port, new_server
from services.common.security import SecurityError, SecuritySettings
from services.common.stalls import watched
from services.common.store import ReplicaRecord, Store, StoreSettings, StoreUnavailable
from services.worker_host import engines, wire
from services.worker_host.attach import WorkerService
from services.worker_host.host import HostSettings, WorkerHost
from services.worker_host.kv_options import KvOptions
from services.worker_host.metrics import WorkerMetrics
from services.worker_host.registration import Registration, WorkerIdTaken
from services.worker_host.time_model import time_model

log = logging.getLogger(__name__)

SERVICE = worker_pb2.DESCRIPTOR.services_by_name["Worker"].full_name
EXIT_FAILED = 1
_CLOSE_TIMEOUT_S = 20.0


@dataclass(frozen=True, slots=True)
class WorkerSettings:
    """Everything a worker process needs to know; times in seconds.

    port 0 lets the system choose. advertise: host name that the controller reaches this worker by. drain_s: how long
    running requests may take after SIGTERM. metrics_port: None for no metrics, 0 for any port.
    """

    role: str
    engine: engines.EngineOptions
    worker_id: str = ""
    host: str = "127.0.0.1"
    port: int = 0
    advertise: str = ""
    lease_s: float = 5.0
    drain_s: float = 30.0
    profile_anew: bool = False
    profile_quick: bool = False
    metrics_port: int | None = None
    kv: KvOptions = field(default_factory=KvOptions)
    limits: HostSettings = field(default_factory=HostSettings)
    store: StoreSettings = field(default_factory=StoreSettings)
    security: SecuritySettings = field(default_factory=SecuritySettings)


class _StopRequested(Exception):
    """A signal came before the worker served."""


async def run(settings: WorkerSettings) -> int:
    """Serve until a signal comes or the engine dies; returns the exit code."""
    stops = _Signals()
    server = new_server(settings.security)
    health_service = health.aio.HealthServicer()
    service = WorkerService()
    health_pb2_grpc.add_HealthServicer_to_server(health_service, server)
    worker_pb2_grpc.add_WorkerServicer_to_server(service, server)
    reflection.enable_server_reflection((SERVICE, health.SERVICE_NAME, reflection.SERVICE_NAME), server)
    engine: Engine | None = None
    store = Store(settings.store)
    try:
        port = add_port(server, f"{settings.host}:{settings.port}", settings.security)
        await _say(health_service, False)
        await server.start()
        worker_id = settings.worker_id or f"{socket.gethostname()}-{port}"
        built = engines.build(settings.engine, _kv_end(settings, worker_id))
        engine = built.engine
        info = replace(await stops.unless(engine.start()), model=built.model)
        fit = await stops.unless(
            time_model(engine, info, built.settings_key, store, settings.profile_anew, settings.profile_quick)
        )
        worker = wire.worker_info(worker_id, settings.role, built.tokenizer_hash, info, fit)
        host = WorkerHost(engine, worker, uuid.uuid4().hex, settings.limits)
        await _take_fence(store, host)
        address = f"{settings.advertise or _reachable(settings.host)}:{port}"
        registration = Registration(
            store, lambda: ReplicaRecord(address, host.incarnation, host.info), settings.lease_s
        )
        host.on_info_changed = registration.changed
        _show_metrics(settings, host)
        service.serve(host)
        await _say(health_service, True)
        log.info("serving", extra={"worker": worker.worker_id, "role": worker.role, "address": address})
        with watched():
            return await _serve(settings, host, registration, stops, health_service)
    except _StopRequested:
        log.info("told to end before the worker served")
        return 0
    except (EngineError, SecurityError) as error:
        log.error("%s", error)
        return EXIT_FAILED
    finally:
        await server.stop(grace=1.0)
        if engine is not None:
            await _close(engine)
        await store.close()


async def _serve(
    settings: WorkerSettings,
    host: WorkerHost,
    registration: Registration,
    stops: _Signals,
    health_service: health.aio.HealthServicer,
) -> int:
    """Run until something ends the worker, and end it in order."""
    pump = asyncio.create_task(host.pump(), name="engine steps")
    lease = asyncio.create_task(registration.run(), name="lease")
    orphans = asyncio.create_task(host.watch_for_orphans(), name="orphans")
    stopping = asyncio.create_task(stops.first(), name="signals")
    code, reason, successor = 0, "", False
    try:
        done, _ = await asyncio.wait({pump, lease, orphans, stopping}, return_when=asyncio.FIRST_COMPLETED)
        if done == {stopping}:
            reason = await _drain(settings, host, stops, pump, health_service)
        else:
            code = EXIT_FAILED
            reason, successor = _why(done - {stopping})
            log.error("the worker ends: %s", reason)
        with contextlib.suppress(asyncio.CancelledError):
            await _say(health_service, False)
            await host.say_stopping(reason)
    finally:
        for task in (pump, lease, orphans, stopping):
            task.cancel()
        await asyncio.gather(pump, lease, orphans, stopping, return_exceptions=True)
        if not successor:
            await registration.end()
    return code


async def _drain(
    settings: WorkerSettings,
    host: WorkerHost,
    stops: _Signals,
    pump: asyncio.Task[None],
    health_service: health.aio.HealthServicer,
) -> str:
    """Finish what runs, within the limit; returns how it went."""
    log.info("draining", extra={"requests": len(host.requests), "limit_s": settings.drain_s})
    await _say(health_service, False)
    host.drain(True, own_reason="the worker was told to end")
    waits = [
        asyncio.create_task(host.idle()),
        asyncio.create_task(stops.second()),
        asyncio.create_task(asyncio.sleep(settings.drain_s)),
    ]
    try:
        await asyncio.wait({*waits, pump}, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in waits:
            task.cancel()
    if host.requests:
        log.warning("ending with requests that are not finished", extra={"requests": len(host.requests)})
        return f"told to end; {len(host.requests)} requests were not finished within {settings.drain_s:g} s"
    return "told to end; everything was finished"


def _why(done: set[asyncio.Task[None]]) -> tuple[str, bool]:
    """Return why a task that should run forever has ended, and whether a successor has our place."""
    for task in done:
        error = task.exception()
        if isinstance(error, WorkerIdTaken):
            return str(error), True
        if isinstance(error, EngineError):
            return str(error), False
        if error is not None:
            log.error("unexpected failure", exc_info=error)
            return f"unexpected failure in {task.get_name()}: {error!r}", False
    return "the engine has closed", False


def _kv_end(settings: WorkerSettings, worker_id: str) -> engines.KvEnd | None:
    config = settings.kv.config(settings.role, settings.host, settings.advertise)
    return engines.KvEnd(worker_id, config, settings.kv.kv_block_bytes, settings.kv.kv_transport) if config else None


async def _take_fence(store: Store, host: WorkerHost) -> None:
    """Learn from Redis which leaders are deposed, since a fresh worker has seen none."""
    try:
        host.highest_fence = await store.leader.fence()
    except StoreUnavailable as error:
        log.warning("any controller may attach: %s", error)


def _show_metrics(settings: WorkerSettings, host: WorkerHost) -> None:
    if settings.metrics_port is None:
        return
    shown = WorkerMetrics(host)
    host.on_step = shown.stepped
    try:
        port = metrics.serve(shown.registry, settings.host, settings.metrics_port)
    except OSError as error:
        raise EngineError(f"Cannot serve metrics on port {settings.metrics_port}: {error.strerror}") from error
    log.info("metrics", extra={"port": port})


def _reachable(host: str) -> str:
    """Return the name by which others reach a server that listens on this address."""
    return socket.gethostname() if host in ("", "0.0.0.0", "[::]", "::") else host


async def _say(service: health.aio.HealthServicer, serving: bool) -> None:
    status = health_pb2.HealthCheckResponse.SERVING if serving else health_pb2.HealthCheckResponse.NOT_SERVING
    for name in ("", SERVICE):
        await service.set(name, status)


async def _close(engine: Engine) -> None:
    try:
        async with asyncio.timeout(_CLOSE_TIMEOUT_S):
            await engine.close()
    except TimeoutError:
        log.error("the engine did not close within %g s", _CLOSE_TIMEOUT_S)


class _Signals:
    """SIGTERM and SIGINT: the first drains, the second ends at once."""

    def __init__(self) -> None:
        self._count = 0
        self._first = asyncio.Event()
        self._second = asyncio.Event()
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._came)

    def _came(self) -> None:
        self._count += 1
        (self._first if self._count == 1 else self._second).set()

    async def first(self) -> None:
        await self._first.wait()

    async def second(self) -> None:
        await self._second.wait()

    async def unless(self, work: Coroutine[Any, Any, Any]) -> Any:
        """Await work; _StopRequested when a signal comes before it is done."""
        task, stop = asyncio.create_task(work), asyncio.create_task(self._first.wait())
        try:
            await asyncio.wait({task, stop}, return_when=asyncio.FIRST_COMPLETED)
            if not task.done():
                raise _StopRequested
            return task.result()
        finally:
            stop.cancel()
            task.cancel()
            await asyncio.gather(task, stop, return_exceptions=True)
