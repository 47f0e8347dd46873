"""Which cores vLLM's processes run on, beside the model's own threads, which vLLM binds itself.

A model thread that shares its core waits for the other at every layer's barrier, and a step then takes several times
as long. vLLM binds the threads of its worker process only; EngineCore polls for results on whatever core it likes.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
from collections.abc import Callable
from pathlib import Path


def bound_cores(bind: str) -> set[int]:
    """Cores that a VLLM_CPU_OMP_THREADS_BIND names ("0-2", "1,3", "0|1" per rank); none for "auto" and "nobind"."""
    if not bind or bind in ("auto", "nobind"):
        return set()
    cores: set[int] = set()
    for part in bind.replace("|", ",").split(","):
        first, _, last = part.partition("-")
        cores.update(range(int(first), int(last or first) + 1))
    return cores


def leave_to_the_model(bind: str) -> Callable[[], None]:
    """Keep this process and the EngineCores it started off the model's cores; returns what undoes that for this one.

    Nothing is changed where the model has every core that this process may use.
    """
    before = os.sched_getaffinity(0)
    others = before - bound_cores(bind)
    if others in (set(), before):
        return lambda: None
    for process in (os.getpid(), *(child.pid for child in multiprocessing.active_children())):
        _move(process, others)
    return lambda: _move(os.getpid(), before)


def _move(process: int | None, cores: set[int]) -> None:
    """Threads made later inherit this from the thread that makes them."""
    with contextlib.suppress(FileNotFoundError):
        for thread in Path(f"/proc/{process}/task").iterdir():
            with contextlib.suppress(ProcessLookupError):
                os.sched_setaffinity(int(thread.name), cores)
