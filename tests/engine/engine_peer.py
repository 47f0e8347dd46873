"""An engine as a process of its own, driven over a pipe: for tests that kill and stop it.

Orders are ("submit", EngineRequest) and ("cancel", request id); every step comes back as (updates, free blocks).
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import multiprocessing
import signal
import threading
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import psutil
import torch

from engine.emulated import EmulatedConfig, EmulatedEngine
from engine.emulated.exchange import KvExchange  # noqa: F401 (loaded once, before the fork)
from engine.protocol import Engine, EngineRequest, RequestUpdate
from tests.engine.policies import DecodeFirst

WAIT_S = 30.0
_CLONE_NEWNET = 0x40000000
PROCESSES = multiprocessing.get_context("forkserver")
PROCESSES.set_forkserver_preload(["tests.engine.engine_peer"])

Make = Callable[[Any], Engine]
"""Makes an engine of its settings; found by name in the new process."""


def emulated(config: EmulatedConfig) -> Engine:
    """Make an emulated engine."""
    torch.set_num_threads(1)
    return EmulatedEngine(config, lambda name, floor: DecodeFirst())


def main(make: Make, config: Any, pipe: Connection, namespace: str) -> None:
    """Serve orders until the pipe closes."""
    if namespace:
        _enter(namespace)
    asyncio.run(_serve(make(config), pipe))


def _enter(namespace: str) -> None:
    """Move this process to a network namespace of `ip netns`, before it has a thread or a socket."""
    libc = ctypes.CDLL(None, use_errno=True)
    with Path(f"/var/run/netns/{namespace}").open() as handle:
        if libc.setns(handle.fileno(), _CLONE_NEWNET) != 0:
            raise OSError(ctypes.get_errno(), f"cannot enter network namespace {namespace}")


async def _serve(engine: Engine, pipe: Connection) -> None:
    loop = asyncio.get_running_loop()
    orders: asyncio.Queue[tuple[str, object] | None] = asyncio.Queue()

    def read() -> None:
        try:
            while True:
                loop.call_soon_threadsafe(orders.put_nowait, pipe.recv())
        except (EOFError, OSError):
            loop.call_soon_threadsafe(orders.put_nowait, None)

    async def report() -> None:
        async for step in engine.events():
            pipe.send((step.updates, step.free_blocks))

    pipe.send((await engine.start()).kv_address)
    threading.Thread(target=read, daemon=True).start()
    reporting = asyncio.create_task(report())
    while (order := await orders.get()) is not None:
        if order[0] == "submit":
            assert isinstance(order[1], EngineRequest)
            await engine.submit(order[1])
        else:
            await engine.cancel(str(order[1]))
    await engine.close()
    await reporting


class Peer:
    """A process with an engine, and what it has said."""

    def __init__(self, config: Any, namespace: str = "", make: Make = emulated, wait_s: float = WAIT_S) -> None:
        """Start it, in a network namespace if one is given, and wait until it listens.

        config says kv_blocks, whatever the engine. wait_s: longest wait for anything of it.
        """
        self.config = config
        self._wait_s = wait_s
        self._pipe, theirs = PROCESSES.Pipe()
        # A real engine has processes of its own, which a daemon may not have.
        is_alone = make is emulated
        arguments = (make, config, theirs, namespace)
        self.process = PROCESSES.Process(target=main, args=arguments, daemon=is_alone)
        self.process.start()
        theirs.close()
        assert self._pipe.poll(2 * wait_s), "the engine process did not start"
        self.address: str = self._pipe.recv()
        self.updates: dict[str, list[RequestUpdate]] = {}
        self.free = config.kv_blocks
        self._changed = threading.Condition()
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        while True:
            try:
                updates, free = self._pipe.recv()
            except (EOFError, OSError):
                return
            with self._changed:
                self.free = free
                for update in updates:
                    self.updates.setdefault(update.request_id, []).append(update)
                self._changed.notify_all()

    def submit(self, request: EngineRequest) -> None:
        """Submit a request."""
        self._pipe.send(("submit", request))

    def cancel(self, request_id: str) -> None:
        """Cancel a request."""
        self._pipe.send(("cancel", request_id))

    def kill(self) -> None:
        """End it as a crash would, with whatever processes it has."""
        self._signal(signal.SIGKILL)
        self.process.join(self._wait_s)

    def pause(self, seconds: float) -> None:
        """Let it hang for a while, with whatever processes it has."""
        self._signal(signal.SIGSTOP)
        time.sleep(seconds)
        self._signal(signal.SIGCONT)

    def _signal(self, number: signal.Signals) -> None:
        assert self.process.pid is not None
        with contextlib.suppress(psutil.NoSuchProcess):
            itself = psutil.Process(self.process.pid)
            for process in (itself, *itself.children(recursive=True)):
                with contextlib.suppress(psutil.NoSuchProcess):
                    process.send_signal(number)

    def tokens(self, request_id: str) -> list[int]:
        """Tokens of a request so far."""
        return [token for update in self.updates.get(request_id, []) for token in update.token_ids]

    def finish(self, request_id: str) -> str:
        """Finish reason of a request; empty while it runs."""
        return self.updates[request_id][-1].finish_reason if request_id in self.updates else ""

    def recomputed(self, request_id: str) -> bool:
        """Whether its KV did not come."""
        return any(update.kv_recomputed for update in self.updates.get(request_id, []))

    def until(self, condition: Callable[[], object], what: str) -> None:
        """Wait for something that a step makes true."""
        deadline_s = time.monotonic() + self._wait_s
        with self._changed:
            while not condition():
                left_s = deadline_s - time.monotonic()
                assert left_s > 0, f"waited for: {what}; free {self.free} of {self.config.kv_blocks}"
                assert self.process.is_alive(), f"the engine has ended while waiting for: {what}"
                self._changed.wait(min(left_s, 0.5))

    def finished(self, *request_ids: str) -> None:
        """Wait for the ends of requests."""
        self.until(lambda: all(self.finish(name) for name in request_ids), f"the ends of {request_ids}")

    def all_free(self) -> None:
        """Wait until no KV block is held."""
        self.until(lambda: self.free == self.config.kv_blocks, "all blocks are free")
