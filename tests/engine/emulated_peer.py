"""An emulated engine as a process of its own, driven over a pipe: for tests that kill and stop it.

Orders are ("submit", EngineRequest) and ("cancel", request id); every step comes back as (updates, free blocks).
"""

from __future__ import annotations

import asyncio
import ctypes
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path

import torch

from engine.emulated import EmulatedConfig, EmulatedEngine
from engine.emulated.exchange import KvExchange  # noqa: F401 (loaded once, before the fork)
from engine.protocol import EngineRequest, RequestUpdate
from tests.engine.policies import DecodeFirst

WAIT_S = 30.0
_CLONE_NEWNET = 0x40000000
PROCESSES = multiprocessing.get_context("forkserver")
PROCESSES.set_forkserver_preload(["tests.engine.emulated_peer"])


def main(config: EmulatedConfig, pipe: Connection, namespace: str) -> None:
    """Serve orders until the pipe closes."""
    if namespace:
        _enter(namespace)
    torch.set_num_threads(1)
    asyncio.run(_serve(config, pipe))


def _enter(namespace: str) -> None:
    """Move this process to a network namespace of `ip netns`, before it has a thread or a socket."""
    libc = ctypes.CDLL(None, use_errno=True)
    with Path(f"/var/run/netns/{namespace}").open() as handle:
        if libc.setns(handle.fileno(), _CLONE_NEWNET) != 0:
            raise OSError(ctypes.get_errno(), f"cannot enter network namespace {namespace}")


async def _serve(config: EmulatedConfig, pipe: Connection) -> None:
    engine = EmulatedEngine(config, lambda name, floor: DecodeFirst())
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

    def __init__(self, config: EmulatedConfig, namespace: str = "") -> None:
        """Start it, in a network namespace if one is given, and wait until it listens."""
        self.config = config
        self._pipe, theirs = PROCESSES.Pipe()
        self.process = PROCESSES.Process(target=main, args=(config, theirs, namespace), daemon=True)
        self.process.start()
        theirs.close()
        assert self._pipe.poll(WAIT_S * 2), "the engine process did not start"
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
        """End it as a crash would."""
        self.process.kill()
        self.process.join(WAIT_S)

    def pause(self, seconds: float) -> None:
        """Let it hang for a while."""
        assert self.process.pid is not None
        os.kill(self.process.pid, signal.SIGSTOP)
        time.sleep(seconds)
        os.kill(self.process.pid, signal.SIGCONT)

    def tokens(self, request_id: str) -> list[int]:
        """Tokens of a request so far."""
        return [token for update in self.updates.get(request_id, []) for token in update.token_ids]

    def finish(self, request_id: str) -> str:
        """Finish reason of a request; empty while it runs."""
        return self.updates[request_id][-1].finish_reason if request_id in self.updates else ""

    def recomputed(self, request_id: str) -> bool:
        """Whether its KV did not come."""
        return any(update.kv_recomputed for update in self.updates.get(request_id, []))

    def until(self, condition: Callable[[], object], what: str, timeout_s: float = WAIT_S) -> None:
        """Wait for something that a step makes true."""
        deadline_s = time.monotonic() + timeout_s
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
