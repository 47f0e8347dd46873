"""Reads several calls of the core as one stream, and stops all of them when one fails or nobody listens any more."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Coroutine, Sequence
from contextlib import aclosing
from typing import Any, TypeVar, cast

from starlette.types import Receive

from protos.slos.v1 import client_pb2
from services.controller.contract import Gateway, GenerationCall
from services.controller.http.body import ClientGone

_Result = TypeVar("_Result")
Messages = AsyncGenerator[client_pb2.GenerateResponse, None]


def _open(gateway: Gateway, call: GenerationCall) -> aclosing[Messages]:
    """The messages of one call; leaving the context cancels it."""
    return aclosing(cast(Messages, gateway.generate(call)))


async def merged(
    gateway: Gateway, calls: Sequence[GenerationCall]
) -> AsyncGenerator[tuple[int, client_pb2.GenerateResponse], None]:
    """(index of the call, message) as they come; the first error of any call ends all. Close it to cancel all."""
    if len(calls) == 1:
        async with _open(gateway, calls[0]) as messages:
            async for message in messages:
                yield 0, message
        return
    # One slot: a slow client leaves messages in the core, which merges them.
    queue: asyncio.Queue[tuple[int, client_pb2.GenerateResponse | BaseException | None]] = asyncio.Queue(maxsize=1)

    async def pump(index: int, call: GenerationCall) -> None:
        try:
            async with _open(gateway, call) as messages:
                async for message in messages:
                    await queue.put((index, message))
        except Exception as error:
            await queue.put((index, error))
        else:
            await queue.put((index, None))

    pumps = [asyncio.create_task(pump(index, call)) for index, call in enumerate(calls)]
    try:
        running = len(pumps)
        while running:
            index, item = await queue.get()
            if item is None:
                running -= 1
            elif isinstance(item, BaseException):
                raise item
            else:
                yield index, item
    finally:
        for task in pumps:
            task.cancel()
        await asyncio.gather(*pumps, return_exceptions=True)


async def until_disconnect(receive: Receive, work: Coroutine[Any, Any, _Result]) -> _Result:
    """The result of work; ClientGone, with work cancelled and finished, when the client goes away first."""

    async def disconnected() -> None:
        while (await receive())["type"] != "http.disconnect":
            pass

    worker = asyncio.create_task(work)
    watcher = asyncio.create_task(disconnected())
    try:
        await asyncio.wait((worker, watcher), return_when=asyncio.FIRST_COMPLETED)
        if not worker.done():
            raise ClientGone
        return worker.result()
    finally:
        worker.cancel()
        watcher.cancel()
        await asyncio.gather(worker, watcher, return_exceptions=True)
