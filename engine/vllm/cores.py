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


def parse(text: str) -> set[int]:
    """Cores such as "0", "1,3" or "0,2-3"; ValueError for anything else."""
    cores: set[int] = set()
    for part in filter(None, text.split(",")):
        first, dash, last = part.partition("-")
        cores.update(range(int(first), int(last if dash else first) + 1))
    return cores


def keep_to(wanted: str) -> Callable[[], None]:
    """Keep this process and the EngineCores it started on these cores; returns what undoes that for this process.

    Cores that this process may not use do not count; where none is left, nothing is changed.
    """
    before = os.sched_getaffinity(0)
    cores = parse(wanted) & before
    if not cores:
        return lambda: None
    for process in (os.getpid(), *(child.pid for child in multiprocessing.active_children())):
        _move(process, cores)
    return lambda: _move(os.getpid(), before)


def _move(process: int | None, cores: set[int]) -> None:
    """Threads made later inherit this from the thread that makes them."""
    with contextlib.suppress(FileNotFoundError):
        for thread in Path(f"/proc/{process}/task").iterdir():
            with contextlib.suppress(ProcessLookupError):
                os.sched_setaffinity(int(thread.name), cores)
