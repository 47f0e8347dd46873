"""Where vLLM's processes run."""

from __future__ import annotations

import multiprocessing
import os
import threading
import time
from pathlib import Path

import pytest

from engine.vllm import cores


@pytest.mark.parametrize(("text", "expected"), [("", set()), ("1", {1}), ("0-2", {0, 1, 2}), ("0,4-5,7", {0, 4, 5, 7})])
def test_cores_are_named(text: str, expected: set[int]) -> None:
    assert cores.parse(text) == expected


@pytest.mark.parametrize("text", ["a", "1-", "-1", "1|2", "1,x"])
def test_what_names_no_cores_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="int"):
        cores.parse(text)


def affinities(process: int) -> list[set[int]]:
    return [os.sched_getaffinity(int(thread.name)) for thread in Path(f"/proc/{process}/task").iterdir()]


def test_every_thread_and_child_moves_and_threads_come_back() -> None:
    before = os.sched_getaffinity(0)
    kept = {min(before)}
    stop = threading.Event()
    thread = threading.Thread(target=stop.wait, args=(60.0,))
    child = multiprocessing.get_context("spawn").Process(target=time.sleep, args=(60.0,))
    thread.start()
    child.start()
    try:
        undo = cores.keep_to(str(min(before)))
        assert child.pid is not None
        assert all(found == kept for found in (*affinities(os.getpid()), *affinities(child.pid)))
        undo()
        assert all(found == before for found in affinities(os.getpid()))
    finally:
        stop.set()
        child.kill()
        child.join(10.0)
        thread.join(10.0)


def test_cores_that_are_not_there_change_nothing() -> None:
    before = os.sched_getaffinity(0)
    cores.keep_to(f"{max(before) + 1}")
    cores.keep_to("")
    assert os.sched_getaffinity(0) == before
