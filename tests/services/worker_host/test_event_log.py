from __future__ import annotations

import asyncio

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from protos.slos.v1 import worker_pb2
from services.worker_host.event_log import EventLog


@settings(max_examples=200, deadline=None)
@given(st.lists(st.one_of(st.just("append"), st.integers(0, 60), st.booleans()), max_size=80), st.integers(1, 8))
def test_log_is_the_unacknowledged_tail_of_all_events(actions: list[str | int | bool], limit: int) -> None:
    """Against a plain list: what was appended and not acknowledged, cut from the front only while dropping."""
    log, said, first, dropping = EventLog(limit), 0, 1, False
    for action in actions:
        if isinstance(action, bool):
            dropping = action
            log.drop_oldest(action)
        elif isinstance(action, int):
            log.acknowledge(action)
            first = max(first, min(action, said) + 1)
        else:
            said += 1
            assert log.append(worker_pb2.Event()).event.number == said
        if dropping:
            first = max(first, said - limit + 1)
        assert (log.oldest, log.last, len(log)) == (first, said, said - first + 1)
        for number in (0, first - 1, said // 2, said):
            assert [kept.event.number for kept in log.after(number)] == list(range(max(first, number + 1), said + 1))
        assert [kept.event.number for kept in log.after(said + 1)] == list(range(first, said + 1))


async def test_room_comes_with_acknowledgement_or_dropping() -> None:
    for make_room in (lambda log: log.acknowledge(1), lambda log: log.drop_oldest(True)):
        log = EventLog(2)
        log.append(worker_pb2.Event())
        await asyncio.wait_for(log.room(), 1)
        log.append(worker_pb2.Event())
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(log.room(), 0.01)
        make_room(log)
        await asyncio.wait_for(log.room(), 1)


def test_limit_must_be_positive() -> None:
    with pytest.raises(ValueError, match="at least 1"):
        EventLog(0)
