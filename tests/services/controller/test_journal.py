"""The journal writer against a real Redis that comes and goes."""

from __future__ import annotations

import asyncio

import pytest

from services.common.embedded_redis import EmbeddedRedis
from services.common.store import Store, StoreSettings, StoreUnavailable
from services.controller.journal import UNJOURNALED_EVENTS, JournalWriter
from services.controller.takeover import REASON, close_abandoned
from tests.services.controller.making import make_request


class Worker:
    """Counts what is acknowledged to it."""

    def __init__(self) -> None:
        self.last_event = 0
        self.acknowledged = 0

    def acknowledge(self, event: int) -> None:
        self.acknowledged = event


def writer(store: Store, worker: Worker | None = None) -> JournalWriter:
    return JournalWriter(store, lambda: 0, lambda: [worker] if worker else [], lambda: None)


async def test_tokens_are_written_once_and_only_then_acknowledged(store: Store) -> None:
    worker = Worker()
    journal = writer(store, worker)
    request = make_request("one")
    journal.opened(request)
    request.output += [5, 6]
    journal.touched(request)
    worker.last_event = 7
    assert worker.acknowledged == 0
    await journal.flush()
    assert worker.acknowledged == 7
    request.output += [7]
    journal.touched(request)
    await journal.flush()
    record = await store.journal.get("one")
    assert record is not None
    assert record.header["token_ids"] == [1, 2, 3]
    assert record.entries == {0: {"token_ids": [5, 6]}, 2: {"token_ids": [7]}}
    journal.closed(request, {"finish_reason": "length"})
    await journal.flush()
    assert journal.backlog == 0
    record = await store.journal.get("one")
    assert record is not None
    assert record.closing == {"finish_reason": "length"}
    assert await store.journal.list_open() == []


async def test_an_id_taken_again_before_the_first_was_written_ends_as_the_second(store: Store) -> None:
    journal = writer(store)
    first, second = make_request("same", prompt=(1,)), make_request("same", prompt=(2,))
    journal.opened(first)
    await journal.flush()
    journal.closed(first, {"finish_reason": "stop"})
    journal.opened(second)
    await journal.flush()
    record = await store.journal.get("same")
    assert record is not None
    assert record.header["token_ids"] == [2]
    assert record.closing is None
    journal.closed(second, {"finish_reason": "length"})
    await journal.flush()
    assert await store.journal.list_open() == []


async def test_the_best_effort_queue_is_kept_in_order_of_arrival(store: Store) -> None:
    journal = writer(store)
    young, old = make_request("young", arrival_s=200.0), make_request("old", arrival_s=100.0)
    journal.queued(young)
    journal.queued(old)
    await journal.flush()
    assert await store.best_effort.all() == ["old", "young"]
    journal.unqueued(old)
    journal.unqueued(old)
    await journal.flush()
    assert await store.best_effort.all() == ["young"]


async def test_nothing_is_forgotten_while_redis_is_away(tmp_path_factory: pytest.TempPathFactory) -> None:
    server = EmbeddedRedis(tmp_path_factory.mktemp("away"))
    server.start()
    worker = Worker()
    store = Store(StoreSettings(url=server.url))
    journal = writer(store, worker)
    running = asyncio.create_task(journal.run())
    try:
        server.kill()
        request = make_request("late")
        journal.opened(request)
        request.output += [9]
        journal.touched(request)
        journal.closed(request, {"finish_reason": "length"})
        with pytest.raises(StoreUnavailable):
            await journal.flush()
        worker.last_event = 5
        await asyncio.sleep(1.0)
        assert worker.acknowledged == 0
        # A worker must not drown in what we have in memory anyway.
        worker.last_event = UNJOURNALED_EVENTS + 1
        async with asyncio.timeout(10):
            while worker.acknowledged == 0:  # noqa: ASYNC110
                await asyncio.sleep(0.05)
        server.start()
        async with asyncio.timeout(10):
            while journal.backlog:  # noqa: ASYNC110
                await asyncio.sleep(0.05)
        record = await store.journal.get("late")
        assert record is not None
        assert record.closing == {"finish_reason": "length"}
    finally:
        running.cancel()
        await store.close()
        server.stop()


async def test_a_new_leader_closes_what_the_old_one_left(store: Store) -> None:
    journal = writer(store)
    for name in ("a", "b"):
        request = make_request(name)
        journal.opened(request)
        journal.queued(request)
        request.output += [1, 2, 3]
        journal.touched(request)
    await journal.flush()
    assert await close_abandoned(store, 0) == 2
    assert await close_abandoned(store, 0) == 0
    record = await store.journal.get("a")
    assert record is not None
    assert record.closing == {"finish_reason": "error", "error": REASON, "output_tokens": 3}
    assert await store.best_effort.size() == 0


async def test_a_request_that_is_queued_and_then_placed_is_written_once(store: Store) -> None:
    journal = writer(store)
    request = make_request("twice")
    journal.opened(request)
    journal.queued(request)
    await journal.flush()
    assert journal.backlog == 0
    journal.opened(request)
    journal.unqueued(request)
    assert journal.backlog == 0, "nothing new was said"
    request.output += [5]
    journal.touched(request)
    await journal.flush()
    journal.opened(request)
    request.output += [6]
    journal.touched(request)
    await journal.flush()
    record = await store.journal.get("twice")
    assert record is not None
    assert record.entries == {0: {"token_ids": [5]}, 1: {"token_ids": [6]}}
