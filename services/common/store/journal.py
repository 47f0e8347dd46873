"""The request journal: enough of every request to go on with it after a controller has died."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from dataclasses import dataclass, field

from services.common.store.connection import StoreConnection
from services.common.store.keys import Keys
from services.common.store.leader import FENCE_CHECK, Fenced

_HEADER = "header"
_CLOSING = "closing"
_RECENT_KEPT = 1000

# KEYS: fence, journal, open, recent. ARGV: token, request id, header, time, ttl in ms. 0 when the id is in use.
# A journal that was closed makes room: clients may take an id again. The same header again is a repeated call.
_OPEN = (
    FENCE_CHECK
    + """
if redis.call('HEXISTS', KEYS[2], 'closing') == 1 then
  redis.call('DEL', KEYS[2])
  redis.call('ZREM', KEYS[4], ARGV[2])
end
if redis.call('HSETNX', KEYS[2], 'header', ARGV[3]) == 0 then
  if redis.call('HGET', KEYS[2], 'header') ~= ARGV[3] then return 0 end
end
redis.call('PEXPIRE', KEYS[2], ARGV[5])
redis.call('ZADD', KEYS[3], ARGV[4], ARGV[2])
return 1
"""
)

# KEYS: fence, then journals. ARGV: token, then for each journal: number of pairs, position, text, position, text ...
# A journal that was closed or never opened takes nothing, so that no key is made that nobody deletes.
_APPEND = (
    FENCE_CHECK
    + """
local at = 2
for k = 2, #KEYS do
  local pairs_here = tonumber(ARGV[at])
  at = at + 1
  local is_open = redis.call('HEXISTS', KEYS[k], 'header') == 1 and redis.call('HEXISTS', KEYS[k], 'closing') == 0
  for _ = 1, pairs_here do
    if is_open then redis.call('HSET', KEYS[k], ARGV[at], ARGV[at + 1]) end
    at = at + 2
  end
end
return 1
"""
)

# KEYS: fence, journal, open, recent. ARGV: token, request id, closing, time, ttl in ms, recent entries kept.
_CLOSE = (
    FENCE_CHECK
    + """
redis.call('ZREM', KEYS[3], ARGV[2])
if redis.call('HEXISTS', KEYS[2], 'header') == 0 then return 0 end
redis.call('HSET', KEYS[2], 'closing', ARGV[3])
redis.call('PEXPIRE', KEYS[2], ARGV[5])
redis.call('ZADD', KEYS[4], ARGV[4], ARGV[2])
redis.call('ZREMRANGEBYRANK', KEYS[4], 0, -1 - tonumber(ARGV[6]))
return 1
"""
)


@dataclass(frozen=True, slots=True)
class JournalRecord:
    """What is known of one request.

    header: as given to open. entries: as appended, by position. closing: as given to close, None while it is open.
    """

    request_id: str
    header: dict[str, object]
    entries: dict[int, dict[str, object]] = field(default_factory=dict)
    closing: dict[str, object] | None = None


class Journal:
    """One hash per request. Entries carry their position, so that writing one again changes nothing.

    Every write takes the leader's fencing token (0: unchecked) and raises Fenced when a newer leader has written.
    """

    def __init__(self, connection: StoreConnection, keys: Keys, open_ttl_s: float = 86_400.0) -> None:
        """Share the connection; a request that nobody closes is forgotten after open_ttl_s."""
        self._connection = connection
        self._keys = keys
        self._open_ttl_ms = int(open_ttl_s * 1000)
        self._open = connection.redis.register_script(_OPEN)
        self._append = connection.redis.register_script(_APPEND)
        self._close = connection.redis.register_script(_CLOSE)

    async def open(self, request_id: str, header: Mapping[str, object], fencing_token: int = 0) -> bool:
        """Begin a request's journal; False when the id is in use. One of a finished request is written over."""
        answer = await self._connection.run(
            self._open(
                keys=[
                    self._keys.fence,
                    self._keys.journal(request_id),
                    self._keys.journal_open,
                    self._keys.journal_recent,
                ],
                args=[fencing_token, request_id, _dump(header), time.time(), self._open_ttl_ms],
            )
        )
        return bool(_checked(answer))

    async def append(self, entries: Mapping[str, Mapping[int, Mapping[str, object]]], fencing_token: int = 0) -> None:
        """Add entries of many requests at once: request id -> position (for example tokens before it) -> entry."""
        if not entries:
            return
        keys = [self._keys.fence, *(self._keys.journal(request_id) for request_id in entries)]
        args: list[str | int] = [fencing_token]
        for of_request in entries.values():
            args.append(len(of_request))
            for position, entry in of_request.items():
                args += [position, _dump(entry)]
        _checked(await self._connection.run(self._append(keys=keys, args=args)))

    async def close(
        self, request_id: str, closing: Mapping[str, object], fencing_token: int = 0, keep_s: float = 3600.0
    ) -> None:
        """End a request's journal; it can be read for keep_s more."""
        answer = await self._connection.run(
            self._close(
                keys=[
                    self._keys.fence,
                    self._keys.journal(request_id),
                    self._keys.journal_open,
                    self._keys.journal_recent,
                ],
                args=[fencing_token, request_id, _dump(closing), time.time(), int(keep_s * 1000), _RECENT_KEPT],
            )
        )
        _checked(answer)

    async def get(self, request_id: str) -> JournalRecord | None:
        """Read one journal; None when there is none."""
        return (await self._read([request_id]))[0]

    async def list_open(self) -> list[JournalRecord]:
        """Every request that was not closed, oldest first: what a new leader takes over."""
        ids = await self._connection.run(self._connection.redis.zrange(self._keys.journal_open, 0, -1))
        records = await self._read(ids)
        gone = [request_id for request_id, record in zip(ids, records, strict=True) if record is None]
        if gone:  # forgotten after open_ttl_s
            await self._connection.run(self._connection.redis.zrem(self._keys.journal_open, *gone))
        return [record for record in records if record is not None and record.closing is None]

    async def list_recent(self, limit: int) -> list[JournalRecord]:
        """Finished requests, newest first."""
        ids = await self._connection.run(
            self._connection.redis.zrange(self._keys.journal_recent, 0, max(0, limit - 1), desc=True)
        )
        return [record for record in await self._read(ids) if record is not None]

    async def _read(self, request_ids: list[str]) -> list[JournalRecord | None]:
        if not request_ids:
            return []
        pipeline = self._connection.redis.pipeline(transaction=False)
        for request_id in request_ids:
            pipeline.hgetall(self._keys.journal(request_id))
        hashes = await self._connection.run(pipeline.execute())
        return [_parse(request_id, fields) for request_id, fields in zip(request_ids, hashes, strict=True)]


def _dump(value: Mapping[str, object]) -> str:
    return json.dumps(value, separators=(",", ":"))


def _checked(answer: int) -> int:
    if answer < 0:
        raise Fenced("A newer controller leads this cluster; this one must stop serving")
    return answer


def _parse(request_id: str, fields: dict[str, str]) -> JournalRecord | None:
    if _HEADER not in fields:
        return None
    positions = sorted(int(name) for name in fields if name not in (_HEADER, _CLOSING))
    return JournalRecord(
        request_id,
        json.loads(fields[_HEADER]),
        {position: json.loads(fields[str(position)]) for position in positions},
        json.loads(fields[_CLOSING]) if _CLOSING in fields else None,
    )
