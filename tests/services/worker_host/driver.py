"""A controller's end of Attach that does exactly what a test tells it, and keeps account of what it gets."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
from collections.abc import AsyncIterator, Callable

import grpc

from protos.slos.v1 import common_pb2, worker_pb2, worker_pb2_grpc
from services.common.rpc import PROTO_VERSION, open_channel
from services.common.security import SecuritySettings

_fences = itertools.count(1)
TIMEOUT_S = 30.0


def next_fence() -> int:
    """A fencing token newer than all that were given before in this run."""
    return next(_fences)


def submission(
    request_id: str,
    prompt: list[int] | None = None,
    *,
    max_tokens: int | None = 20,
    ignore_eos: bool = True,
    standard: bool = True,
    **changes: object,
) -> worker_pb2.Submit:
    """A greedy request whose deadlines never bind."""
    prompt = prompt or [9, 10, 11]
    fields: dict[str, object] = {
        "request_id": request_id,
        "token_ids": prompt,
        "prompt_tokens": len(prompt),
        "sampling": common_pb2.Sampling(temperature=0.0, max_tokens=max_tokens, ignore_eos=ignore_eos),
        "admission": common_pb2.ADMISSION_STANDARD if standard else common_pb2.ADMISSION_BEST_EFFORT,
        "ttft_remaining_us": 60_000_000,
        "tpot_us": 1_000_000,
        "expected_output_tokens": 20,
        "value": 1.0,
        "slo_class": "chatbot",
    }
    return worker_pb2.Submit(**{**fields, **changes})


class Account:
    """What is known of requests over all streams to one worker: survives reconnecting."""

    def __init__(self) -> None:
        self.last_event = 0
        self.tokens: dict[str, list[int]] = {}
        self.text: dict[str, str] = {}
        self.finished: dict[str, worker_pb2.RequestStep] = {}
        self.rejected: dict[str, worker_pb2.Rejected] = {}
        self.others: list[worker_pb2.Event] = []
        self.free_blocks = 0

    def take(self, event: worker_pb2.Event) -> None:
        """Book an event; AssertionError when it is out of order or says something twice."""
        if event.number == 0:
            return
        assert event.number == self.last_event + 1, f"event {event.number} after {self.last_event}"
        self.last_event = event.number
        kind = event.WhichOneof("event")
        if kind == "step":
            self.free_blocks = event.step.free_blocks
            for update in event.step.requests:
                name = update.request_id
                assert name not in self.finished, f"{name} was finished already"
                self.tokens.setdefault(name, []).extend(update.token_ids)
                self.text[name] = self.text.get(name, "") + update.text
                if update.finish_reason:
                    self.finished[name] = update
        elif kind == "rejected":
            self.rejected[event.rejected.request_id] = event.rejected
        else:
            self.others.append(event)

    def heard(self, kind: str) -> bool:
        """Whether an event of this kind has come."""
        return any(event.WhichOneof("event") == kind for event in self.others)


class Driver:
    """One stream; made by attach()."""

    def __init__(self, call: grpc.aio.StreamStreamCall, welcome: worker_pb2.Welcome, account: Account) -> None:
        self._call = call
        self.welcome = welcome
        self.account = account

    async def send(self, **command: object) -> None:
        """Send one command, for example send(cancel=CancelCommand(...))."""
        await self._call.write(worker_pb2.Command(**command))

    async def submit(self, submit: worker_pb2.Submit) -> None:
        await self.send(submit=submit)

    async def cancel(self, request_id: str) -> None:
        await self.send(cancel=worker_pb2.CancelCommand(request_id=request_id))

    async def acknowledge(self) -> None:
        """Let the worker forget all that is booked."""
        await self.send(ack=worker_pb2.Ack(event=self.account.last_event))

    async def next(self) -> worker_pb2.Event:
        """Book and return the next event; AioRpcError or EOFError when the stream ends."""
        async with asyncio.timeout(TIMEOUT_S):
            event = await self._call.read()
        if event is grpc.aio.EOF:
            code, details = await self._call.code(), await self._call.details()
            raise EOFError(f"{code.name}: {details}")
        self.account.take(event)
        return event

    async def until(self, wanted: Callable[[Account], bool], timeout_s: float = TIMEOUT_S) -> None:
        """Take events until the account is as wanted."""
        async with asyncio.timeout(timeout_s):
            while not wanted(self.account):
                await self.next()

    async def settle(self) -> None:
        """Take every event that the worker has sent before now."""
        nonce = next_fence()
        await self.send(ping=worker_pb2.Ping(nonce=nonce))
        while (await self.next()).pong.nonce != nonce:
            pass

    async def end(self) -> tuple[grpc.StatusCode, str]:
        """Take events until the worker ends the stream; returns how."""
        try:
            while True:
                await self.next()
        except (EOFError, grpc.aio.AioRpcError):
            return await self._call.code(), await self._call.details()

    def cut(self) -> None:
        """Break the stream off."""
        self._call.cancel()


@contextlib.asynccontextmanager
async def attach(
    address: str,
    account: Account | None = None,
    *,
    fence: int | None = None,
    controller_id: str = "test",
    version: int = PROTO_VERSION,
    security: SecuritySettings | None = None,
) -> AsyncIterator[Driver]:
    """Attach to a worker; AioRpcError when it refuses.

    With no account, events from before are acknowledged unseen, so that tests that share a worker do not meet.
    """
    channel = open_channel(address, security or SecuritySettings())
    try:
        call = worker_pb2_grpc.WorkerStub(channel).Attach()
        hello = worker_pb2.Hello(
            proto_version=version,
            fencing_token=next_fence() if fence is None else fence,
            last_event=account.last_event if account else 0,
            controller_id=controller_id,
        )
        async with asyncio.timeout(TIMEOUT_S):
            with contextlib.suppress(asyncio.InvalidStateError):  # refused: reading says why
                await call.write(worker_pb2.Command(hello=hello))
            first = await call.read()
        if first is grpc.aio.EOF:
            raise EOFError(f"{(await call.code()).name}: {await call.details()}")
        driver = Driver(call, first.welcome, account or Account())
        if account is None:
            driver.account.last_event = first.welcome.oldest_event - 1
            await driver.settle()
            await driver.acknowledge()
            fresh = Account()
            fresh.last_event = driver.account.last_event
            driver.account = fresh
        yield driver
        call.cancel()
    finally:
        await channel.close()
