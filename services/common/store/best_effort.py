"""The order of the best-effort queue, so that it outlives a controller; the requests themselves are in the journal."""

from __future__ import annotations

from collections.abc import Iterable

from services.common.store.connection import StoreConnection
from services.common.store.keys import Keys


class BestEffortQueue:
    """Ids of waiting requests, first in first out by arrival."""

    def __init__(self, connection: StoreConnection, keys: Keys) -> None:
        """Share the connection."""
        self._connection = connection
        self._key = keys.best_effort

    async def push(self, request_id: str, arrived_unix_s: float) -> None:
        """Let a request wait; its place is that of its arrival."""
        await self._connection.run(self._connection.redis.zadd(self._key, {request_id: arrived_unix_s}))

    async def remove(self, request_ids: Iterable[str]) -> None:
        """Take requests out, because they run, finished or were cancelled; unknown ids are ignored."""
        ids = list(request_ids)
        if ids:
            await self._connection.run(self._connection.redis.zrem(self._key, *ids))

    async def all(self) -> list[str]:
        """Ids, the one that waits longest in front."""
        ids: list[str] = await self._connection.run(self._connection.redis.zrange(self._key, 0, -1))
        return ids

    async def size(self) -> int:
        """How many wait."""
        count: int = await self._connection.run(self._connection.redis.zcard(self._key))
        return count
