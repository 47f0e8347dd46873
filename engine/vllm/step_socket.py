"""The Unix socket between the step scheduler and the engine: server in vLLM's process, client in ours."""

from __future__ import annotations

import asyncio
import contextlib
import os
import queue
import signal
import socket
import threading
from collections.abc import AsyncIterator
from pathlib import Path

from engine.protocol import EngineError
from engine.vllm.messages import (
    HEADER,
    MAX_FRAME,
    Command,
    EngineFacts,
    Report,
    StepRecord,
    decode_command,
    decode_report,
    frame,
)


class SchedulerSocket:
    """Server side. The scheduler's thread never waits for it: two threads read and write.

    One client is served. When it goes away because its process died, this process ends too: nobody else would.
    """

    def __init__(self, path: str, facts: EngineFacts) -> None:
        """Listen at once, so that a client that sees the engine up can connect."""
        self._inbox: queue.SimpleQueue[Command] = queue.SimpleQueue()
        self._outbox: queue.SimpleQueue[Report | None] = queue.SimpleQueue()
        self._outbox.put(facts)
        self._parent = os.getppid()
        Path(path).unlink(missing_ok=True)
        self._server = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._server.bind(path)
        self._server.listen(1)
        threading.Thread(target=self._serve, name="step-socket", daemon=True).start()

    def send(self, record: StepRecord) -> None:
        """Queue a record; returns at once."""
        self._outbox.put(record)

    def commands(self) -> list[Command]:
        """Take what has arrived since the last call."""
        arrived = []
        with contextlib.suppress(queue.Empty):
            while True:
                arrived.append(self._inbox.get_nowait())
        return arrived

    def close(self) -> None:
        """Send what is queued and stop."""
        self._outbox.put(None)
        with contextlib.suppress(OSError):
            self._server.close()

    def _serve(self) -> None:
        try:
            connection, _ = self._server.accept()
        except OSError:
            return
        threading.Thread(target=self._write, args=(connection,), name="step-socket-out", daemon=True).start()
        with contextlib.suppress(OSError, ValueError):
            while body := _read_frame(connection):
                self._inbox.put(decode_command(body))
        if os.getppid() != self._parent:
            os.kill(os.getpid(), signal.SIGTERM)

    def _write(self, connection: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while (report := self._outbox.get()) is not None:
                connection.sendall(frame(report))
            connection.shutdown(socket.SHUT_WR)


def _read_frame(connection: socket.socket) -> bytes | None:
    header = _read_exactly(connection, HEADER.size)
    if header is None:
        return None
    (length,) = HEADER.unpack(header)
    if length > MAX_FRAME:
        raise ValueError(f"a frame of {length} bytes")
    return _read_exactly(connection, length)


def _read_exactly(connection: socket.socket, size: int) -> bytes | None:
    data = bytearray()
    while len(data) < size:
        chunk = connection.recv(size - len(data))
        if not chunk:
            return None
        data += chunk
    return bytes(data)


class StepSocketClient:
    """Client side: facts on connect, then records."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, facts: EngineFacts) -> None:
        """Use `connect`."""
        self._reader, self._writer, self.facts = reader, writer, facts

    @classmethod
    async def connect(cls, path: str, timeout_s: float) -> StepSocketClient:
        """Connect and read the engine's facts; EngineError when nobody answers."""
        try:
            async with asyncio.timeout(timeout_s):
                reader, writer = await asyncio.open_unix_connection(path)
                facts = decode_report(await _next_frame(reader))
        except (OSError, TimeoutError, asyncio.IncompleteReadError) as error:
            raise EngineError(f"the step scheduler inside vLLM does not answer on its socket: {error!r}") from error
        if not isinstance(facts, EngineFacts):
            raise EngineError("the step scheduler inside vLLM said a step before its facts")
        return cls(reader, writer, facts)

    async def send(self, command: Command) -> None:
        """Send one command; EngineError when the engine process is gone."""
        try:
            self._writer.write(frame(command))
            await self._writer.drain()
        except (OSError, RuntimeError) as error:
            raise EngineError(f"the engine process is gone: {error}") from error

    async def records(self) -> AsyncIterator[StepRecord]:
        """Yield records until the engine process closes the socket."""
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
            while True:
                report = decode_report(await _next_frame(self._reader))
                if isinstance(report, StepRecord):
                    yield report

    async def close(self) -> None:
        """Close; safe to call twice."""
        self._writer.close()
        with contextlib.suppress(OSError, TimeoutError):
            async with asyncio.timeout(1.0):
                await self._writer.wait_closed()


async def _next_frame(reader: asyncio.StreamReader) -> bytes:
    (length,) = HEADER.unpack(await reader.readexactly(HEADER.size))
    return await reader.readexactly(length)
