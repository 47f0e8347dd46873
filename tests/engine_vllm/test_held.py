"""Decode halves that wait for their prefill half's word: each is run once, or ended, and none waits for ever."""

from __future__ import annotations

import asyncio

import pytest

from engine.protocol import EngineError, EngineRequest, RequestRejected
from engine.vllm.kv.held import HeldRequests
from tests.engine_vllm.harness import make_request


class Engine:
    """Notes what it is told to run and to end."""

    def __init__(self, hold_s: float = 60.0, error: Exception | None = None) -> None:
        self.ran: list[tuple[str, str]] = []
        self.ended: list[tuple[str, str]] = []
        self._error = error
        self.held = HeldRequests(self._add, lambda request_id, why: self.ended.append((request_id, why)), hold_s)

    async def _add(self, request: EngineRequest, kv_handle: str) -> None:
        if self._error is not None:
            raise self._error
        self.ran.append((request.request_id, kv_handle))


async def test_a_request_runs_once_with_its_handle() -> None:
    engine = Engine()
    request = make_request([1, 2])
    engine.held.hold(request)
    await engine.held.release("unknown", "x")
    await engine.held.release(request.request_id, "where")
    await engine.held.release(request.request_id, "again")
    assert engine.ran == [(request.request_id, "where")]
    assert not engine.held.drop(request.request_id)


async def test_without_a_word_the_prompt_is_computed_here() -> None:
    engine = Engine(hold_s=0.02)
    request = make_request([1, 2])
    engine.held.hold(request)
    async with asyncio.timeout(10):
        while not engine.ran:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
    assert engine.ran == [(request.request_id, "")]


async def test_what_was_dropped_does_not_run() -> None:
    engine = Engine(hold_s=0.02)
    first, second = make_request([1, 2]), make_request([3, 4])
    engine.held.hold(first)
    engine.held.hold(second)
    assert engine.held.drop(first.request_id)
    engine.held.close()
    await engine.held.release(first.request_id, "where")
    await asyncio.sleep(0.1)
    assert engine.ran == []


@pytest.mark.parametrize("error", [RequestRejected("INVALID_ARGUMENT", "odd"), EngineError("dead")])
async def test_one_that_cannot_run_any_more_is_ended(error: EngineError) -> None:
    engine = Engine(error=error)
    request = make_request([1, 2])
    engine.held.hold(request)
    if isinstance(error, RequestRejected):
        await engine.held.release(request.request_id, "where")
        assert engine.ended == [(request.request_id, "odd")]
    else:
        with pytest.raises(EngineError, match="dead"):
            await engine.held.release(request.request_id, "where")
    assert not engine.held.drop(request.request_id)
