"""What the steps of one replica have shown: how many there were, how long they took, and when they ended."""

from __future__ import annotations

from collections import deque

from protos.slos.v1 import worker_pb2
from services.common import clock

KEPT = 256
LATEST_S = 10.0
"""An event that seems to have travelled for longer tells of a clock that jumped."""


class StepRecord:
    """Steps of one worker process, on this process's clock."""

    def __init__(self) -> None:
        """Start without a step."""
        self.count = 0
        self._durations_s: deque[float] = deque(maxlen=KEPT)
        self._offsets_s: deque[float] = deque(maxlen=KEPT)

    @property
    def mean_s(self) -> float:
        """Mean duration of recent steps; 0 before the first."""
        return sum(self._durations_s) / len(self._durations_s) if self._durations_s else 0.0

    def reattached(self) -> None:
        """Forget the worker's clock: the next events may come from another machine."""
        self._offsets_s.clear()

    def ended_s(self, step: worker_pb2.Step, received_s: float, rtt_s: float) -> float:
        """Count a step and return when it ended.

        An event may wait long for a busy event loop at either end, and one that waited looks younger than it is. The
        fastest of the last ones tells how the two clocks differ.
        """
        self.count += 1
        self._durations_s.append(step.duration_us / clock.MICROSECONDS)
        without_wait_s = received_s - step.age_us / clock.MICROSECONDS - rtt_s / 2
        if step.ended_us <= 0:
            return without_wait_s
        there_s = step.ended_us / clock.MICROSECONDS
        self._offsets_s.append(without_wait_s - there_s)
        return max(there_s + min(self._offsets_s), without_wait_s - LATEST_S)
