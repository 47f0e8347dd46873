"""One controller's stream: what is to be sent on it, and how it ends."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Awaitable, Callable

import grpc

from protos.slos.v1 import worker_pb2
from services.common import clock
from services.worker_host.event_log import KeptEvent

_CROWDED = 1000


class Session:
    """Everything goes out in the order of send(), so that a Pong proves that all events before it were sent."""

    def __init__(self, hello: worker_pb2.Hello) -> None:
        """Take the controller's greeting."""
        self.fencing_token = hello.fencing_token
        self.controller_id = hello.controller_id
        self.rtt_s = 0.0
        self.end_status = grpc.StatusCode.OK
        self.end_reason = ""
        self._outgoing: deque[KeptEvent] = deque()
        self._wake = asyncio.Event()
        self._ended = asyncio.Event()
        self._sent = asyncio.Event()
        self._sent.set()
        self._room = asyncio.Event()
        self._room.set()

    def send(self, event: KeptEvent) -> None:
        """Queue an event."""
        self._outgoing.append(event)
        self._sent.clear()
        if len(self._outgoing) > _CROWDED:
            self._room.clear()
        self._wake.set()

    def end(self, status: grpc.StatusCode, reason: str) -> None:
        """Let the stream end; the first reason counts."""
        if not self._ended.is_set():
            self.end_status, self.end_reason = status, reason
            self._ended.set()

    async def ended(self) -> None:
        """Wait until somebody ends the stream."""
        await self._ended.wait()

    async def sent(self) -> None:
        """Wait until everything queued has been handed to the transport."""
        await self._sent.wait()

    async def room(self) -> None:
        """Wait until the controller has taken most of what is queued; further commands may come then."""
        await self._room.wait()

    async def write_to(self, write: Callable[[worker_pb2.Event], Awaitable[None]]) -> None:
        """Send what is queued, forever; a slow network holds the queue up and not the engine's loop."""
        while True:
            while self._outgoing:
                kept = self._outgoing.popleft()
                if kept.ended_s is not None:
                    kept.event.step.age_us = max(0, round((time.monotonic() - kept.ended_s) * clock.MICROSECONDS))
                await write(kept.event)
                if len(self._outgoing) <= _CROWDED:
                    self._room.set()
            self._sent.set()
            self._wake.clear()
            await self._wake.wait()
