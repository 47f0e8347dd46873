"""Requests without a promise: those that wait for a replica, and those about which replicas are asked again."""

from __future__ import annotations

import bisect
import math

from simulation.requests import Requests

RETRY_FIRST_S, RETRY_LAST_S, RETRY_ROUND_S = 0.1, 2.0, 0.1


class Waiting:
    """A queue, first arrived first out, and when to ask about whom again."""

    def __init__(self, requests: Requests) -> None:
        """Nobody waits."""
        self._requests = requests
        self._queue: list[tuple[float, int]] = []
        self._ask_at_s: dict[int, float] = {}
        self._next_round_s = 0.0

    def __len__(self) -> int:
        """Requests that wait for a replica."""
        return len(self._queue)

    @property
    def first(self) -> int:
        """Who has waited longest for a replica."""
        return self._queue[0][1]

    @property
    def next_round_s(self) -> float:
        """When anybody is asked about next, at the earliest; infinite where there is nobody to ask about."""
        return self._next_round_s if self._ask_at_s else math.inf

    def declined(self, row: int, now_s: float) -> None:
        """A new request that nobody promised waits, and is asked about again."""
        self._ask_at_s[row] = now_s + RETRY_FIRST_S
        self.wait(row)

    def wait(self, row: int) -> None:
        """A request is on no replica."""
        bisect.insort(self._queue, (float(self._requests.arrival_s[row]), row))

    def leave(self, row: int) -> None:
        """A request goes to a replica."""
        key = (float(self._requests.arrival_s[row]), row)
        at = bisect.bisect_left(self._queue, key)
        if at < len(self._queue) and self._queue[at] == key:
            del self._queue[at]

    def settled(self, row: int) -> None:
        """A request is not asked about any more."""
        self._ask_at_s.pop(row, None)

    def due(self, now_s: float) -> list[int]:
        """Those to ask about now; who has missed a deadline is never asked about again."""
        if now_s < self._next_round_s or not self._ask_at_s:
            return []
        self._next_round_s = now_s + RETRY_ROUND_S
        requests = self._requests
        due = []
        for row, ask_at_s in list(self._ask_at_s.items()):
            if requests.finished[row] or requests.late[row] or requests.next_due_s(row) <= now_s:
                del self._ask_at_s[row]
            elif ask_at_s <= now_s:
                due.append(row)
        return due

    def asked(self, rows: list[int], now_s: float) -> None:
        """Replicas were asked about these; who has no promise is asked about again, ever less often."""
        for row in rows:
            if self._requests.promised[row]:
                del self._ask_at_s[row]
            else:
                waited_s = now_s - float(self._requests.arrival_s[row])
                self._ask_at_s[row] = now_s + min(max(RETRY_FIRST_S, waited_s / 4), RETRY_LAST_S)
