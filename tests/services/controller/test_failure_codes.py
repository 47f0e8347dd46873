"""A request that fails after its first message says so in its last one, with the status that HTTP clients get."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path

import grpc
import pytest

from protos.slos.v1 import client_pb2, common_pb2, worker_pb2
from services.common.embedded_redis import EmbeddedRedis
from tests.services.controller.cores import ask, core_over, step, submitted
from tests.services.controller.peer import Peer


async def answer_to(
    redis_server: EmbeddedRedis, folder: Path, reactions: Sequence[tuple[str, worker_pb2.Event]]
) -> client_pb2.GenerateResponse:
    """Last message of a request whose worker reacts so to each submission."""
    peer = Peer()
    async with core_over(redis_server, folder, {"worker": peer}) as core:
        asking = ask(core)
        for name, event in reactions:
            await peer.hear(submitted(name))
            peer.send(event)
        return (await asking)[-1]


def rejection(number: int, name: str, code: grpc.StatusCode) -> tuple[str, worker_pb2.Event]:
    rejected = worker_pb2.Rejected(request_id=name, code=code.value[0], reason="it says so")
    return name, worker_pb2.Event(number=number, rejected=rejected)


@pytest.mark.parametrize("finish", [common_pb2.FINISH_REASON_ERROR, common_pb2.FINISH_REASON_CANCELLED])
async def test_what_an_engine_ends_has_a_code(
    redis_server: EmbeddedRedis, tmp_path: Path, finish: common_pb2.FinishReason
) -> None:
    last = await answer_to(redis_server, tmp_path, [("r", step(1, "r", [], finish, error="out of luck"))])
    assert last.finish_reason == finish
    assert last.error_code == ("INTERNAL" if finish == common_pb2.FINISH_REASON_ERROR else "CANCELLED")


async def test_a_complete_answer_has_none(redis_server: EmbeddedRedis, tmp_path: Path) -> None:
    last = await answer_to(redis_server, tmp_path, [("r", step(1, "r", [5], common_pb2.FINISH_REASON_STOP))])
    assert (last.error, last.error_code) == ("", "")


async def test_what_a_worker_refuses_keeps_its_code(redis_server: EmbeddedRedis, tmp_path: Path) -> None:
    last = await answer_to(redis_server, tmp_path, [rejection(1, "r", grpc.StatusCode.UNIMPLEMENTED)])
    assert last.finish_reason == common_pb2.FINISH_REASON_ERROR
    assert (last.error, last.error_code) == ("it says so", "UNIMPLEMENTED")


async def test_giving_up_is_unavailable(redis_server: EmbeddedRedis, tmp_path: Path) -> None:
    busy = [rejection(index + 1, f"r~{index}" if index else "r", grpc.StatusCode.UNAVAILABLE) for index in range(3)]
    last = await answer_to(redis_server, tmp_path, busy)
    assert last.error_code == "UNAVAILABLE"
    assert "gave up after 3 attempts" in last.error


async def test_a_new_request_waits_while_the_only_link_is_broken(redis_server: EmbeddedRedis, tmp_path: Path) -> None:
    peer = Peer()
    async with core_over(redis_server, tmp_path, {"worker": peer}) as core:
        peer.open.clear()
        peer.hang_up()
        async with asyncio.timeout(10):
            while core.replicas.usable("tiny"):  # noqa: ASYNC110
                await asyncio.sleep(0.01)
        asking = ask(core)
        async with asyncio.timeout(10):
            while not core.queue:  # noqa: ASYNC110
                await asyncio.sleep(0.01)
        peer.open.set()
        await peer.hear(submitted("r"))
        peer.send(step(1, "r", [5], common_pb2.FINISH_REASON_STOP))
        last = (await asking)[-1]
    assert (last.error, last.finish_reason) == ("", common_pb2.FINISH_REASON_STOP)
