"""How vLLM's processes wait for each other on a CPU: asleep, not in a loop around sched_yield.

The queue between EngineCore and the model's processes is read in a loop that yields the core and looks again, for a
second after each message; only then does the reader sleep until it is told of the next one. Where such a reader shares
its core with other processes, Linux (6.18) was seen to leave the one that had the next thing to do waiting for a core
for up to a second, and steps of 60 ms took as long. Readers sleep from the first moment instead.

Announcements get lost where two follow each other within a millisecond or so (the announcing socket holds one, and
drops what comes before it has learned that this one is gone), so a reader also looks by itself: after a millisecond,
and then whenever a quarter of the time since the last message has passed.
"""

from __future__ import annotations

import functools
import logging
import time
from typing import Any, Self

logger = logging.getLogger(__name__)

FIRST_LOOK_MS, LAST_LOOK_MS = 1, 100
LOOKS = 4
"""A reader looks by itself after this part of the time since the last message, between the two bounds."""


def sleep_until_told() -> None:
    """Make readers in this process sleep; on other hardware, and in a vLLM without such a queue, nothing changes."""
    from vllm.platforms import current_platform

    if not current_platform.is_cpu():
        return
    try:
        from vllm.distributed.device_communicators.shm_broadcast import SpinCondition
    except ImportError:
        logger.warning("this vLLM waits in a way that is not known here; its steps may stall where cores are shared")
        return
    if getattr(SpinCondition.wait, "sleeps", False):
        return
    spinning = SpinCondition.wait

    @functools.wraps(spinning)
    def wait(self: Any, timeout_ms: int | None = None) -> None:
        self.busy_loop_s = -1.0
        waited_ms = 1e3 * (time.monotonic() - self.last_read)
        look_ms = min(max(round(waited_ms / LOOKS), FIRST_LOOK_MS), LAST_LOOK_MS)
        spinning(self, timeout_ms=look_ms if timeout_ms is None else min(timeout_ms, look_ms))

    wait.sleeps = True  # type: ignore[attr-defined]
    SpinCondition.wait = wait


class SleepingWorker:
    """vLLM mixes this into the class of its worker: the one place of ours that the model's processes come by."""

    def __new__(cls, *_: Any, **__: Any) -> Self:
        """Before the process waits for its first message."""
        sleep_until_told()
        return super().__new__(cls)
