"""The life of the controller process: what starts in which order, and how it ends."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
import time
from collections.abc import Coroutine
from functools import partial

from scheduling import registry as policies
from scheduling.policy import Policy
from services.common import rpc
from services.common.metrics import CollectorRegistry
from services.common.stalls import watched
from services.common.store import Store, StoreUnavailable
from services.controller.core import Core
from services.controller.gate import Gate
from services.controller.gauges import CoreGauges
from services.controller.leadership import Leadership
from services.controller.metrics import Metrics
from services.controller.servers import Servers
from services.controller.settings import ControllerSettings
from services.controller.takeover import close_abandoned
from services.controller.tokenizer import Catalog
from services.controller.warmup import warm_up

log = logging.getLogger(__name__)


class ControllerFailed(Exception):
    """Something went wrong that only a new process sets right."""


LOCAL_POOL = (("grpc.use_local_subchannel_pool", 1),)
"""A channel of its own per link: a broken connection is tried again at our pace, not at the library's."""


async def serve(settings: ControllerSettings) -> None:
    """Run the controller until SIGTERM or SIGINT; raises what makes a start impossible."""
    catalog = Catalog.load(settings.models, settings.thinking)
    policy = policies.get(settings.policy, routing=settings.routing or None, explain_lines=True)
    store = Store(settings.store)
    registry = CollectorRegistry()
    metrics = Metrics(registry)
    gate = Gate()
    servers = Servers(settings, gate, catalog, registry)
    warm_up(policy)
    stopping = asyncio.Event()
    loop = asyncio.get_running_loop()
    for name in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(name, stopping.set)
    await servers.start()
    try:
        with watched():
            while not stopping.is_set():
                leading = asyncio.create_task(_lead(settings, store, catalog, policy, metrics, gate, stopping))
                stop = asyncio.create_task(stopping.wait())
                await asyncio.wait((leading, stop), return_when=asyncio.FIRST_COMPLETED)
                stop.cancel()
                await leading
    finally:
        gate.close("the controller is shutting down")
        await servers.stop()
        await store.close()


async def _lead(
    settings: ControllerSettings,
    store: Store,
    catalog: Catalog,
    policy: Policy,
    metrics: Metrics,
    gate: Gate,
    stopping: asyncio.Event,
) -> None:
    """Become leader, serve, and return when the process stops or another controller has taken over."""
    leadership = Leadership(store, settings.controller_id, settings.leader_ttl_s)
    if not await _unless_stopped(stopping, leadership.acquire(gate.close)):
        return
    lost = asyncio.Event()
    core = Core(
        settings.controller_id,
        leadership.fencing_token,
        store,
        catalog,
        policy,
        metrics,
        partial(rpc.open_channel, settings=settings.security, options=LOCAL_POOL),
        settings.core,
        lost.set,
    )
    gauges = CoreGauges(core)
    keeping = asyncio.create_task(leadership.keep())
    keeping.add_done_callback(lambda _: lost.set())
    try:
        if not await _unless_stopped(stopping, _start(core, store, leadership.fencing_token, gate)):
            return
        gate.open(core)
        metrics.registry.register(gauges)
        waits = [asyncio.create_task(event.wait()) for event in (stopping, lost, core.failed)]
        await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        for wait in waits:
            wait.cancel()
        if core.failed.is_set():
            gate.close("the controller has failed and restarts")
            await core.cut_off("the controller failed; send the request again")
            raise ControllerFailed("a task failed, see above; the process ends so that it can be restarted")
        if lost.is_set():
            gate.close("another controller leads; this one stands by")
            await core.cut_off("another controller has taken over; send the request again")
        else:
            log.info("shutting down: %d requests are running", len(core.live))
            cut = await core.drain(settings.drain_s)
            if cut:
                log.warning("%d requests were cut off after %g s", cut, settings.drain_s)
    finally:
        keeping.cancel()
        with contextlib.suppress(KeyError):  # it did not get so far
            metrics.registry.unregister(gauges)
        await core.close()
        await leadership.release()


async def _start(core: Core, store: Store, token: int, gate: Gate) -> None:
    """Take the cluster over, as soon as Redis answers."""
    while True:
        try:
            closed = await close_abandoned(store, token)
            if closed:
                log.warning("%d requests of an earlier controller had lost their clients and were closed", closed)
            await core.start()
            return
        except StoreUnavailable as error:
            log.warning("%s", error)
            gate.close(str(error))
            await asyncio.sleep(0.5)


async def _unless_stopped(stopping: asyncio.Event, work: Coroutine[None, None, object]) -> bool:
    """Await work; False when the process is to stop before it is done."""
    task = asyncio.create_task(work)
    stop = asyncio.create_task(stopping.wait())
    await asyncio.wait((task, stop), return_when=asyncio.FIRST_COMPLETED)
    stop.cancel()
    if task.done():
        task.result()
        return True
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    return False


def default_controller_id(host: str, pid: int) -> str:
    """Name of this process in the cluster."""
    return f"{host}-{pid}-{int(time.time())}"
