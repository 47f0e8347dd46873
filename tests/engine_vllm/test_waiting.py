"""vLLM's processes sleep while they wait for each other, and hear of every message in time."""

from __future__ import annotations

import asyncio
import multiprocessing
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import psutil
import pytest

from engine.vllm import waiting
from tests.engine_vllm.harness import Harness

MESSAGES = 200


def _writer() -> Any:
    from vllm.distributed.device_communicators.shm_broadcast import MessageQueue

    return MessageQueue(1, 1, max_chunk_bytes=1 << 16)


def _reader(handle: Any) -> Any:
    """Sleeps in the process that makes it; returns when the writer waits for it."""
    from vllm.distributed.device_communicators.shm_broadcast import MessageQueue

    waiting.sleep_until_told()
    reader = MessageQueue.create_from_handle(handle, 0)
    reader.wait_until_ready()
    return reader


def _queue() -> tuple[Any, Any]:
    """Writer and reader of one queue, connected."""
    writer = _writer()
    with ThreadPoolExecutor() as pool:
        connected = pool.submit(_reader, writer.export_handle())
        writer.wait_until_ready()
        return writer, connected.result(timeout=10.0)


def test_a_reader_uses_no_core_while_it_waits() -> None:
    writer, reader = _queue()
    threading.Timer(0.5, writer.enqueue, ("late",)).start()
    before_s, began_s = time.thread_time(), time.monotonic()
    assert reader.dequeue(timeout=30.0) == "late"
    assert time.monotonic() - began_s > 0.4
    assert time.thread_time() - before_s < 0.25, "a loop around sched_yield takes the half second whole"


def test_a_reader_still_gives_up_in_time() -> None:
    _, reader = _queue()
    with pytest.raises(TimeoutError):
        reader.dequeue(timeout=0.2)


def _echo(handle: Any, back: Any) -> None:
    reader = _reader(handle)
    for _ in range(MESSAGES):
        first, second = reader.dequeue(timeout=30.0), reader.dequeue(timeout=30.0)
        back.send((first, second))


def test_the_second_of_two_messages_is_read_though_its_announcement_may_be_lost() -> None:
    writer = _writer()
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    reader = context.Process(target=_echo, args=(writer.export_handle(), theirs))
    reader.start()
    try:
        writer.wait_until_ready()
        began_s = time.monotonic()
        for number in range(MESSAGES):
            writer.enqueue((number, "execute"))
            writer.enqueue((number, "sample"))
            assert ours.poll(30.0)
            assert ours.recv() == ((number, "execute"), (number, "sample"))
        each_s = (time.monotonic() - began_s) / MESSAGES
    finally:
        reader.kill()
        reader.join(10.0)
    assert each_s < 0.05, "half of vLLM's own wait for a lost announcement, over a hundred times what a pair takes"


def _cpu_s(process: int) -> float:
    """Time on a core of a process and its children, seconds."""
    itself = psutil.Process(process)
    times = (each.cpu_times() for each in (itself, *itself.children(recursive=True)))
    return sum(spent.user + spent.system for spent in times)


@pytest.mark.asyncio(loop_scope="package")
async def test_an_engine_that_has_just_served_is_quiet(engine: Harness) -> None:
    """All its processes: vLLM's own way keeps the model's process busy for a second after the last step."""
    assert (await engine.generate(list(range(1000, 1020)))).finish_reason
    before_s = _cpu_s(engine.engine.process_id)
    await asyncio.sleep(0.8)
    assert _cpu_s(engine.engine.process_id) - before_s < 0.4
