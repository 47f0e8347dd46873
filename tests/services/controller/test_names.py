"""Names on workers: an id is free as soon as its request has ended, whatever a worker may still hold under it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import grpc
import pytest

from protos.slos.v1 import common_pb2, worker_pb2
from services.common.embedded_redis import EmbeddedRedis
from services.controller.contract import ApiError
from services.controller.core import Core
from tests.services.controller.cores import ask, cancelled, core_over, step, submitted
from tests.services.controller.peer import Peer

STOP = common_pb2.FINISH_REASON_STOP
CANCELLED = common_pb2.FINISH_REASON_CANCELLED


@dataclass(slots=True)
class One:
    """A core with one peer."""

    core: Core
    peer: Peer


@pytest.fixture
async def one(redis_server: EmbeddedRedis, tmp_path: Path) -> AsyncIterator[One]:
    peer = Peer()
    async with core_over(redis_server, tmp_path, {"worker": peer}) as core:
        yield One(core, peer)


async def test_an_id_is_free_while_a_worker_has_not_confirmed_its_cancel(one: One) -> None:
    first = ask(one.core)
    await one.peer.hear(submitted("r"))
    with pytest.raises(ApiError, match="in use"):
        await ask(one.core)
    assert await one.core.cancel("r")
    assert (await first)[-1].finish_reason == CANCELLED
    await one.peer.hear(cancelled("r"))
    second = ask(one.core)
    # The worker may still hold the first: its tokens must not be taken for those of the second.
    await one.peer.hear(submitted("r~1"))
    one.peer.send(step(1, "r", [9]))
    one.peer.send(step(2, "r~1", [5]))
    one.peer.send(step(3, "r", [], CANCELLED))
    one.peer.send(step(4, "r~1", [6], STOP))
    assert [token for message in await second for token in message.token_ids] == [5, 6]


async def test_an_id_is_free_after_its_worker_was_lost(one: One) -> None:
    first = ask(one.core)
    await one.peer.hear(submitted("r"))
    one.peer.refuse = "a newer controller leads"
    one.peer.hang_up()
    async with asyncio.timeout(10):
        while one.core.replicas.awaited("tiny"):  # noqa: ASYNC110
            await asyncio.sleep(0.01)
    await one.core.cancel("r")
    await first
    with pytest.raises(ApiError, match="no replica of model tiny is ready"):
        await ask(one.core)


async def test_what_a_worker_holds_under_a_new_requests_name_is_cancelled_and_the_request_goes_again(one: One) -> None:
    asking = ask(one.core)
    await one.peer.hear(submitted("r"))
    taken = worker_pb2.Rejected(
        request_id="r", code=grpc.StatusCode.ALREADY_EXISTS.value[0], reason="request 'r' is on this worker already"
    )
    one.peer.send(worker_pb2.Event(number=1, rejected=taken))
    await one.peer.hear(cancelled("r"))
    await one.peer.hear(submitted("r~1"))
    one.peer.send(step(2, "r", [], CANCELLED))
    one.peer.send(step(3, "r~1", [5], STOP))
    messages = await asking
    assert messages[-1].finish_reason == STOP
    assert [token for message in messages for token in message.token_ids] == [5]
