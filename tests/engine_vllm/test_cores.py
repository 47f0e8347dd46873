"""Where vLLM's processes run."""

from __future__ import annotations

import multiprocessing
import os
import threading
import time
from pathlib import Path

import pytest

from engine.vllm import cores


@pytest.mark.parametrize(
    ("bind", "expected"),
    [("auto", set()), ("nobind", set()), ("", set()), ("1", {1}), ("0-2", {0, 1, 2}), ("0,4-5|7", {0, 4, 5, 7})],
)
def test_a_binding_names_cores(bind: str, expected: set[int]) -> None:
    assert cores.bound_cores(bind) == expected


def affinities(process: int) -> list[set[int]]:
    return [os.sched_getaffinity(int(thread.name)) for thread in Path(f"/proc/{process}/task").iterdir()]


def test_every_thread_and_child_leaves_the_models_cores_and_threads_come_back() -> None:
    before = os.sched_getaffinity(0)
    taken = max(before)
    stop = threading.Event()
    thread = threading.Thread(target=stop.wait, args=(60.0,))
    child = multiprocessing.get_context("spawn").Process(target=time.sleep, args=(60.0,))
    thread.start()
    child.start()
    try:
        undo = cores.leave_to_the_model(str(taken))
        left = before - {taken} or before
        assert child.pid is not None
        assert all(found == left for found in (*affinities(os.getpid()), *affinities(child.pid)))
        undo()
        assert all(found == before for found in affinities(os.getpid()))
    finally:
        stop.set()
        child.kill()
        child.join(10.0)
        thread.join(10.0)


def test_a_model_that_has_every_core_shares_them() -> None:
    before = os.sched_getaffinity(0)
    cores.leave_to_the_model(",".join(map(str, before)))
    assert os.sched_getaffinity(0) == before
