"""Events that the controller has not acknowledged: numbered, in order, ready to be sent again."""

from __future__ import annotations

import asyncio
from collections import deque
from dataclasses import dataclass

from protos.slos.v1 import worker_pb2


@dataclass(frozen=True, slots=True)
class KeptEvent:
    """An event and, for a step, when it ended on this process's clock."""

    event: worker_pb2.Event
    ended_s: float | None = None


class EventLog:
    """Keeps at most `limit` events; whoever adds more waits for room, so a slow reader slows the engine down."""

    def __init__(self, limit: int) -> None:
        """Start with number 1."""
        if limit < 1:
            raise ValueError(f"the number of kept events must be at least 1, not {limit}")
        self._limit = limit
        self._kept: deque[KeptEvent] = deque()
        self._last = 0
        self._room = asyncio.Event()
        self._room.set()
        self._dropping = False

    @property
    def last(self) -> int:
        """Number of the newest event; 0 before the first."""
        return self._last

    @property
    def oldest(self) -> int:
        """Number of the oldest event that can be sent again; one past the newest when none is kept."""
        return self._last - len(self._kept) + 1

    def __len__(self) -> int:
        """Events that are kept."""
        return len(self._kept)

    def append(self, event: worker_pb2.Event, ended_s: float | None = None) -> KeptEvent:
        """Number an event and keep it, whatever the limit; steps wait for room() before."""
        self._last += 1
        event.number = self._last
        kept = KeptEvent(event, ended_s)
        self._kept.append(kept)
        self._settle()
        return kept

    async def room(self) -> None:
        """Wait until one more event may be kept."""
        await self._room.wait()

    def acknowledge(self, number: int) -> None:
        """Drop the events up to a number; numbers that were never given are taken for the newest."""
        while self._kept and self._kept[0].event.number <= number:
            self._kept.popleft()
        self._settle()

    def after(self, number: int) -> list[KeptEvent]:
        """Return the kept events past a number; all of them when the number is not one of this log's."""
        if number > self._last:
            number = 0
        return [kept for kept in self._kept if kept.event.number > number]

    def drop_oldest(self, dropping: bool) -> None:
        """Choose what happens without room: drop the oldest events, because nobody will come for them, or wait."""
        self._dropping = dropping
        self._settle()

    def _settle(self) -> None:
        if self._dropping:
            while len(self._kept) > self._limit:
                self._kept.popleft()
        if self._dropping or len(self._kept) < self._limit:
            self._room.set()
        else:
            self._room.clear()
