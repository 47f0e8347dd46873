"""One Attach stream to one worker: connect, measure the round trip, notice a break, come back."""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import grpc

from protos.slos.v1 import worker_pb2, worker_pb2_grpc

log = logging.getLogger(__name__)

Stamp = Callable[[worker_pb2.Command, float], None]
"""Fills the remaining times of a command in, given the time of sending on this process's monotonic clock."""

FIRST_BACKOFF_S = 0.05
LAST_BACKOFF_S = 1.0
REFUSED_BACKOFF_S = 5.0
REFUSALS = (grpc.StatusCode.FAILED_PRECONDITION, grpc.StatusCode.UNAUTHENTICATED, grpc.StatusCode.PERMISSION_DENIED)


class LinkRefused(Exception):
    """The two ends cannot work together; the text says why. Another controller, model or version is needed."""


class LinkOwner(Protocol):
    """Who a link tells what happens on it; every method returns at once."""

    def hello(self) -> worker_pb2.Hello:
        """Greeting for the next connection."""
        ...

    def welcomed(self, welcome: worker_pb2.Welcome) -> None:
        """A connection stands; LinkRefused when the worker does not fit."""
        ...

    def replayed(self) -> None:
        """Every event from before the connection has been handled."""
        ...

    def handle(self, event: worker_pb2.Event, received_s: float) -> None:
        """A numbered event arrived."""
        ...

    def broken(self, reason: str) -> None:
        """A connection that stood is gone, or none could be made; commands not yet sent are dropped."""
        ...

    def gone(self, reason: str) -> None:
        """Nobody listens at the worker's address: the process that had the requests has ended."""
        ...

    def refused(self, reason: str) -> None:
        """The two ends cannot work together."""
        ...


@dataclass(frozen=True, slots=True)
class LinkTimes:
    """Time limits of a link, seconds."""

    connect_s: float = 5.0
    ping_s: float = 1.0
    silence_s: float = 5.0


class WorkerLink:
    """Keeps one Attach stream to a worker alive and in order."""

    def __init__(
        self,
        address: str,
        owner: LinkOwner,
        make_channel: Callable[[str], grpc.aio.Channel],
        times: LinkTimes | None = None,
    ) -> None:
        """Prepare a link; `run` does the work."""
        self.address = address
        self.connected = False
        self._owner = owner
        self._make_channel = make_channel
        self._times = times or LinkTimes()
        self._outgoing: deque[tuple[worker_pb2.Command, Stamp | None]] = deque()
        self._wake = asyncio.Event()
        self._round_trips: deque[float] = deque(maxlen=16)
        self._pings: dict[int, float] = {}
        self._nonce = 0
        self._replay_nonce = 0
        self._last_received_s = 0.0
        self._retry_now = asyncio.Event()

    @property
    def rtt_s(self) -> float:
        """Smallest recent round trip, seconds; the others waited for an event loop. 0 when not measured yet."""
        return min(self._round_trips) if self._round_trips else 0.0

    def send(self, command: worker_pb2.Command, stamp: Stamp | None = None) -> None:
        """Queue a command; dropped when there is no connection (the welcome of the next one tells what is missing)."""
        if not self.connected:
            return
        self._outgoing.append((command, stamp))
        self._wake.set()

    def retry_now(self) -> None:
        """Try to connect at once: the worker has just been seen alive."""
        self._retry_now.set()

    async def run(self) -> None:
        """Connect again and again until cancelled."""
        backoff_s = FIRST_BACKOFF_S
        while True:
            was_connected = False
            try:
                if not await self._somebody_listens():
                    self._owner.gone(f"nobody listens at {self.address}")
                    await self._sleep(backoff_s)
                    backoff_s = min(backoff_s * 2, LAST_BACKOFF_S)
                    continue
                await self._session()
                reason = "the worker closed the stream"
            except LinkRefused as error:
                self._disconnect()
                self._owner.refused(str(error))
                await self._sleep(REFUSED_BACKOFF_S)
                continue
            except grpc.aio.AioRpcError as error:
                if error.code() in REFUSALS:
                    self._disconnect()
                    self._owner.refused(f"the worker refused this controller: {error.details()}")
                    await self._sleep(REFUSED_BACKOFF_S)
                    continue
                reason = f"{error.code().name}: {error.details()}"
            except TimeoutError as error:
                reason = str(error) or f"no answer within {self._times.connect_s:g} s"
            except (ConnectionError, asyncio.InvalidStateError) as error:
                reason = str(error)
            finally:
                was_connected = self.connected
                self._disconnect()
            self._owner.broken(reason)
            backoff_s = FIRST_BACKOFF_S if was_connected else min(backoff_s * 2, LAST_BACKOFF_S)
            await self._sleep(backoff_s * random.uniform(0.7, 1.3))

    async def _somebody_listens(self) -> bool:
        """Tell a process that has ended from one that cannot be reached: only the former's host refuses at once."""
        host, _, port = self.address.rpartition(":")
        try:
            async with asyncio.timeout(self._times.connect_s):
                _, writer = await asyncio.open_connection(host.strip("[]"), int(port))
        except ConnectionRefusedError:
            return False
        except (OSError, TimeoutError, ValueError):
            return True  # the attempt that follows says what is wrong
        writer.close()
        return True

    async def _sleep(self, seconds: float) -> None:
        self._retry_now.clear()
        try:
            async with asyncio.timeout(seconds):
                await self._retry_now.wait()
        except TimeoutError:
            pass

    def _disconnect(self) -> None:
        self.connected = False
        self._outgoing.clear()
        self._pings.clear()

    async def _session(self) -> None:
        channel = self._make_channel(self.address)
        try:
            call = worker_pb2_grpc.WorkerStub(channel).Attach()
            async with asyncio.timeout(self._times.connect_s):
                await call.write(worker_pb2.Command(hello=self._owner.hello()))
                first = await call.read()
            if first is grpc.aio.EOF:
                await self._ended(call)
                raise ConnectionError("the worker closed the stream without a welcome")
            if first.WhichOneof("event") != "welcome":
                raise LinkRefused("the worker's first event is not a welcome: it speaks another version of the API")
            self._last_received_s = time.monotonic()
            self.connected = True
            self._owner.welcomed(first.welcome)
            self._replay_nonce = self._ping()
            tasks = [
                asyncio.create_task(self._read(call)),
                asyncio.create_task(self._write(call)),
                asyncio.create_task(self._watch()),
            ]
            try:
                done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
                for task in done:
                    task.result()
            finally:
                for task in tasks:
                    task.cancel()
                await asyncio.gather(*tasks, return_exceptions=True)
                call.cancel()
        finally:
            await channel.close(grace=None)

    async def _read(self, call: grpc.aio.StreamStreamCall) -> None:
        while True:
            event = await call.read()
            if event is grpc.aio.EOF:
                await self._ended(call)
                return
            now_s = time.monotonic()
            self._last_received_s = now_s
            if event.WhichOneof("event") == "pong":
                self._pong(event.pong.nonce, now_s)
            else:
                self._owner.handle(event, now_s)

    @staticmethod
    async def _ended(call: grpc.aio.StreamStreamCall) -> None:
        """Raise for a stream that ended with an error."""
        status, details = await call.code(), await call.details()
        if status in REFUSALS:
            raise LinkRefused(f"the worker refused this controller: {details}")
        if status is not grpc.StatusCode.OK:
            raise ConnectionError(f"{status.name}: {details}")

    async def _write(self, call: grpc.aio.StreamStreamCall) -> None:
        while True:
            while self._outgoing:
                command, stamp = self._outgoing.popleft()
                if stamp is not None:
                    stamp(command, time.monotonic())
                await call.write(command)
            self._wake.clear()
            await self._wake.wait()

    async def _watch(self) -> None:
        while True:
            await asyncio.sleep(self._times.ping_s)
            silent_s = time.monotonic() - self._last_received_s
            if silent_s > self._times.silence_s:
                raise TimeoutError(f"the worker has been silent for {silent_s:.1f} s")
            self._ping()

    def _ping(self) -> int:
        self._nonce += 1

        def stamp(command: worker_pb2.Command, now_s: float) -> None:
            self._pings[command.ping.nonce] = now_s

        ping = worker_pb2.Ping(nonce=self._nonce, rtt_us=round(self.rtt_s * 1e6))
        self.send(worker_pb2.Command(ping=ping), stamp)
        return self._nonce

    def _pong(self, nonce: int, now_s: float) -> None:
        sent_s = self._pings.pop(nonce, None)
        if sent_s is not None:
            self._round_trips.append(now_s - sent_s)
        if nonce == self._replay_nonce:
            self._replay_nonce = 0
            self._owner.replayed()
