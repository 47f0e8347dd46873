"""Independent jobs over the cores, in order of submission, with a progress bar."""

from __future__ import annotations

import multiprocessing
import os
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from typing import TypeVar

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

Job = TypeVar("Job")
Result = TypeVar("Result")
_LOOK_S = 1.0


def cores() -> int:
    """Cores this process may use."""
    return len(os.sched_getaffinity(0))


def run_all(
    work: Callable[[Job], Result],
    jobs: Sequence[Job],
    label: str,
    name: Callable[[Job], str],
    processes: int | None = None,
    quiet: bool = False,
    done: Callable[[int, Result], None] | None = None,
) -> list[Result]:
    """Results in the order of the jobs; the first failure is raised when the running jobs have ended.

    done: called in this process with index and result of every job as soon as it is known.
    """
    results: dict[int, Result] = {}
    for index, result in _completed(work, jobs, label, name, processes or cores(), quiet):
        results[index] = result
        if done is not None:
            done(index, result)
    return [results[i] for i in range(len(jobs))]


def _completed(
    work: Callable[[Job], Result],
    jobs: Sequence[Job],
    label: str,
    name: Callable[[Job], str],
    processes: int,
    quiet: bool,
) -> Iterator[tuple[int, Result]]:
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[last]}"),
    )
    with Progress(*columns, console=Console(stderr=True), disable=quiet) as bar:
        task = bar.add_task(label, total=len(jobs), last="")
        for index, result in _results(work, jobs, processes):
            bar.update(task, advance=1, last=name(jobs[index]))
            yield index, result


def _results(work: Callable[[Job], Result], jobs: Sequence[Job], processes: int) -> Iterable[tuple[int, Result]]:
    if processes == 1 or len(jobs) == 1:
        for index, job in enumerate(jobs):
            yield index, work(job)
        return
    # Not forked: a compiled kernel's threads and a half-loaded cache do not survive a fork.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(
        min(processes, len(jobs)), mp_context=context, initializer=_end_with, initargs=(os.getpid(),)
    ) as pool:
        futures: dict[Future[Result], int] = {pool.submit(work, job): i for i, job in enumerate(jobs)}
        try:
            for future in as_completed(futures):
                yield futures[future], future.result()
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def _end_with(parent: int) -> None:
    """In a worker process: end when the process that wants the results is gone, in the middle of a job too."""

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(_LOOK_S)
        os._exit(1)

    threading.Thread(target=watch, name="parent watch", daemon=True).start()
