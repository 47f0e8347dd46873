"""vLLM's processes sleep while they wait for each other, and hear of every message in time."""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from engine.vllm import waiting
from tests.engine_vllm.harness import Harness

MESSAGES = 200


def _queue() -> tuple[Any, Any]:
    """Writer and reader of one queue, connected."""
    from vllm.distributed.device_communicators.shm_broadcast import MessageQueue

    waiting.sleep_until_told()
    writer = MessageQueue(1, 1, max_chunk_bytes=1 << 16)
    reader = MessageQueue.create_from_handle(writer.export_handle(), 0)
    connected = threading.Thread(target=reader.wait_until_ready)
    connected.start()
    writer.wait_until_ready()
    connected.join(10.0)
    return writer, reader


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
    from vllm.distributed.device_communicators.shm_broadcast import MessageQueue

    waiting.sleep_until_told()
    reader = MessageQueue.create_from_handle(handle, 0)
    reader.wait_until_ready()
    for _ in range(MESSAGES):
        first, second = reader.dequeue(timeout=30.0), reader.dequeue(timeout=30.0)
        back.send((first, second))


def test_the_second_of_two_messages_is_read_though_its_announcement_may_be_lost() -> None:
    from vllm.distributed.device_communicators.shm_broadcast import MessageQueue

    waiting.sleep_until_told()
    writer = MessageQueue(1, 1, max_chunk_bytes=1 << 16)
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
    fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    children = [
        child for path in Path(f"/proc/{process}/task").glob("*/children") for child in path.read_text().split()
    ]
    own_s = (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    return own_s + sum(_cpu_s(int(child)) for child in children)


@pytest.mark.asyncio(loop_scope="package")
async def test_an_engine_that_has_just_served_is_quiet(engine: Harness) -> None:
    """All its processes: vLLM's own way keeps the model's process busy for a second after the last step."""
    assert (await engine.generate(list(range(1000, 1020)))).finish_reason
    before_s = _cpu_s(engine.engine.process_id)
    await asyncio.sleep(0.8)
    assert _cpu_s(engine.engine.process_id) - before_s < 0.4
