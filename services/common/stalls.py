"""Notices when an event loop stands still, and says where: a stall looks like a dead peer to everybody else."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import sys
import threading
import time
import traceback
from collections.abc import Iterator

log = logging.getLogger(__name__)

BEAT_S = 0.25
LIMIT_S = 2.0
"""A loop that has not come round for this long is reported; peers give up on it after five seconds."""


@contextlib.contextmanager
def watched(limit_s: float = LIMIT_S) -> Iterator[None]:
    """Watch the running loop from a thread of its own: logs what it is busy with, and how long that took in the end.

    When the thread itself did not run either, the process was stopped or had no CPU, and that is what is logged.
    """
    watch = _Watch(asyncio.get_running_loop(), threading.get_ident(), limit_s)
    thread = threading.Thread(target=watch.run, name="stalls", daemon=True)
    thread.start()
    try:
        yield
    finally:
        watch.stopped.set()
        thread.join(2 * BEAT_S)


class _Watch:
    """Asks the loop for a beat, again and again."""

    def __init__(self, loop: asyncio.AbstractEventLoop, thread_id: int, limit_s: float) -> None:
        self.stopped = threading.Event()
        self._loop = loop
        self._thread_id = thread_id
        self._limit_s = limit_s
        self._beat = threading.Event()

    def run(self) -> None:
        """Until stopped, or until the loop is closed."""
        while not self.stopped.is_set():
            self._beat.clear()
            asked_s = time.monotonic()
            try:
                self._loop.call_soon_threadsafe(self._beat.set)
            except RuntimeError:
                return
            reported = False
            while not self._beat.wait(self._limit_s) and not self.stopped.is_set():
                waited_s = time.monotonic() - asked_s
                if waited_s > 2 * self._limit_s and not reported:
                    log.warning("this process did not run for %.1f s: it was stopped, or had no CPU", waited_s)
                elif not reported:
                    log.warning("the event loop has stood still for %.1f s, in\n%s", waited_s, self._where())
                reported = True
            if reported:
                log.warning("the event loop goes on after %.1f s", time.monotonic() - asked_s)
            self.stopped.wait(BEAT_S)

    def _where(self) -> str:
        frame = sys._current_frames().get(self._thread_id)
        return "".join(traceback.format_stack(frame)) if frame is not None else "(its thread has ended)"
