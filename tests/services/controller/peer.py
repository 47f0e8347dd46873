"""A worker that misbehaves on purpose: speaks the wire but does only what a test tells it."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable

import grpc

from protos.slos.v1 import worker_pb2, worker_pb2_grpc
from scheduling.time_model import TimeModel

MODEL = TimeModel(((0.01, 1e-5, 0.0, 0.0, 0.0, 0.0),), source="assumed: for tests")


def info(worker_id: str = "peer", **changes: object) -> worker_pb2.WorkerInfo:
    """Facts that fit a controller with model "tiny" and tokenizer hash "hash"."""
    fields: dict[str, object] = {
        "worker_id": worker_id,
        "proto_version": 1,
        "model": "tiny",
        "tokenizer_hash": "hash",
        "role": "both",
        "kv_blocks": 100,
        "block_size": 16,
        "max_model_len": 512,
        "max_batch_tokens": 256,
        "max_batch_requests": 8,
        "emulated": True,
        "time_model_json": MODEL.to_json(),
        "hardware": "none",
    }
    return worker_pb2.WorkerInfo(**{**fields, **changes})


class Peer(worker_pb2_grpc.WorkerServicer):
    """Welcomes with what is set, records commands, sends what it is given; answers pings unless it is silent.

    While `open` is not set, whoever attaches waits for the welcome.
    """

    def __init__(self) -> None:
        self.welcome = worker_pb2.Welcome(info=info(), incarnation="one", oldest_event=1)
        self.commands: list[worker_pb2.Command] = []
        self.hellos: list[worker_pb2.Hello] = []
        self.silent = False
        self.refuse = ""
        self.open = asyncio.Event()
        self.open.set()
        self._out: asyncio.Queue[worker_pb2.Event | None] = asyncio.Queue()
        self._heard = asyncio.Event()

    async def Attach(  # noqa: N802
        self, commands: AsyncIterator[worker_pb2.Command], context: grpc.aio.ServicerContext
    ) -> AsyncIterator[worker_pb2.Event]:
        first = await anext(commands)
        self.hellos.append(first.hello)
        if self.refuse:
            await context.abort(grpc.StatusCode.FAILED_PRECONDITION, self.refuse)
        await self.open.wait()
        yield worker_pb2.Event(welcome=self.welcome)
        listening = asyncio.create_task(self._listen(commands))
        try:
            while (event := await self._out.get()) is not None:
                yield event
        finally:
            listening.cancel()

    async def _listen(self, commands: AsyncIterator[worker_pb2.Command]) -> None:
        async for command in commands:
            if command.WhichOneof("command") != "ping":
                self.commands.append(command)
                self._heard.set()
            elif not self.silent:
                self.send(worker_pb2.Event(pong=worker_pb2.Pong(nonce=command.ping.nonce)))

    def send(self, event: worker_pb2.Event) -> None:
        """Let the controller have an event."""
        self._out.put_nowait(event)

    def hang_up(self) -> None:
        """End the stream."""
        self._out.put_nowait(None)

    async def hear(self, wanted: Callable[[worker_pb2.Command], bool], timeout_s: float = 10.0) -> worker_pb2.Command:
        """Wait for a command."""
        async with asyncio.timeout(timeout_s):
            while True:
                for command in self.commands:
                    if wanted(command):
                        return command
                self._heard.clear()
                await self._heard.wait()


@contextlib.asynccontextmanager
async def listening(peer: Peer) -> AsyncIterator[str]:
    """Serve a peer; gives its address."""
    server = grpc.aio.server()
    worker_pb2_grpc.add_WorkerServicer_to_server(peer, server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        yield f"127.0.0.1:{port}"
    finally:
        await server.stop(0)
