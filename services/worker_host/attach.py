"""The worker API: Attach."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator

import grpc

from engine.protocol import EngineError
from protos.slos.v1 import worker_pb2, worker_pb2_grpc
from services.worker_host.commands import Commands
from services.worker_host.host import AttachRefused, WorkerHost
from services.worker_host.session import Session

log = logging.getLogger(__name__)

_HELLO_TIMEOUT_S = 5.0


class WorkerService(worker_pb2_grpc.WorkerServicer):
    """Serves one stream per controller; before the host is there, controllers are told to wait."""

    def __init__(self) -> None:
        """Answer UNAVAILABLE until serve()."""
        self._host: WorkerHost | None = None
        self._commands: Commands | None = None

    def serve(self, host: WorkerHost) -> None:
        """Let controllers attach to this host."""
        self._host, self._commands = host, Commands(host)

    async def Attach(  # noqa: N802 - the name is the API's
        self, _: AsyncIterator[worker_pb2.Command], context: grpc.aio.ServicerContext
    ) -> None:
        """Serve one controller until it goes, is replaced, or the worker ends."""
        host = self._host
        if host is None:
            await context.abort(grpc.StatusCode.UNAVAILABLE, "the worker is still loading its model")
            return
        try:
            async with asyncio.timeout(_HELLO_TIMEOUT_S):
                first = await context.read()
        except TimeoutError:
            await context.abort(grpc.StatusCode.DEADLINE_EXCEEDED, "no Hello came")
            return
        if first is grpc.aio.EOF or first.WhichOneof("command") != "hello":
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, "the first command must be Hello, and well-formed")
            return
        try:
            session = host.attach(first.hello)
        except AttachRefused as error:
            log.warning("refused a controller", extra={"controller": first.hello.controller_id, "reason": error.reason})
            await context.abort(error.status, error.reason)
            return
        reason = "the stream was cut"
        try:
            reason = await self._serve(host, session, context)
        finally:
            host.detach(session, reason)
        if session.end_status is not grpc.StatusCode.OK:
            await context.abort(session.end_status, session.end_reason)

    async def _serve(self, host: WorkerHost, session: Session, context: grpc.aio.ServicerContext) -> str:
        """Move commands and events until one side ends; returns why."""
        tasks = [
            asyncio.create_task(self._read(host, session, context), name="commands"),
            asyncio.create_task(session.write_to(context.write), name="events"),
            asyncio.create_task(session.ended(), name="end of session"),
        ]
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in tasks:
                task.cancel()
            results = await asyncio.gather(*tasks, return_exceptions=True)
        if session.end_reason:
            return session.end_reason
        for result in results:
            if isinstance(result, Exception):
                return f"{type(result).__name__}: {result}"
        return results[0] if isinstance(results[0], str) else "the worker ended it"

    async def _read(self, host: WorkerHost, session: Session, context: grpc.aio.ServicerContext) -> str:
        """Carry out commands as they come; returns why there are no more."""
        assert self._commands is not None
        while True:
            await session.room()
            try:
                async with asyncio.timeout(host.settings.silence_s):
                    command = await context.read()
            except TimeoutError:
                silence = f"the controller was silent for {host.settings.silence_s:g} s"
                session.end(grpc.StatusCode.DEADLINE_EXCEEDED, silence)
                return silence
            if command is grpc.aio.EOF:
                return "the controller closed the stream"
            doing = asyncio.create_task(self._commands.carry_out(session, command), name="command")
            try:
                # A command that was begun is finished even when the stream ends under it.
                await asyncio.shield(doing)
            except EngineError as error:
                session.end(grpc.StatusCode.UNAVAILABLE, str(error))
                return str(error)
