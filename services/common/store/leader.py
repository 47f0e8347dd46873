"""Which controller leads: a lock that expires, and a fencing token that outlives it."""

from __future__ import annotations

from dataclasses import dataclass

from services.common.store.connection import StoreConnection
from services.common.store.keys import Keys

# KEYS: leader, fence. ARGV: controller id, ttl in ms. Answers the token, or 0 when another one leads.
# The token is at least the time in ms: were Redis to lose its data, tokens would still only grow.
_ACQUIRE = """
local holder = redis.call('GET', KEYS[1])
if holder then return '0' end
local now = redis.call('TIME')
local now_ms = tonumber(now[1]) * 1000 + math.floor(tonumber(now[2]) / 1000)
local fence = tonumber(redis.call('GET', KEYS[2]) or '0') + 1
if now_ms > fence then fence = now_ms end
local text = string.format('%.0f', fence)
redis.call('SET', KEYS[2], text)
redis.call('SET', KEYS[1], text .. ' ' .. ARGV[1], 'PX', ARGV[2])
return text
"""

# KEYS: leader, fence. ARGV: token, controller id, ttl in ms. A lock that only expired, or that Redis lost together
# with its data, is taken up again: nobody with a newer token has led since.
_RENEW = """
local fence = redis.call('GET', KEYS[2])
if fence and tonumber(fence) > tonumber(ARGV[1]) then return 0 end
redis.call('SET', KEYS[2], ARGV[1])
redis.call('SET', KEYS[1], ARGV[1] .. ' ' .. ARGV[2], 'PX', ARGV[3])
return 1
"""

# KEYS: leader. ARGV: token.
_RELEASE = """
local holder = redis.call('GET', KEYS[1])
if holder and string.match(holder, '^%d+') == ARGV[1] then return redis.call('DEL', KEYS[1]) end
return 0
"""

FENCE_CHECK = """
local fence = redis.call('GET', KEYS[1])
if fence and tonumber(ARGV[1]) > 0 and tonumber(fence) > tonumber(ARGV[1]) then return -1 end
"""
"""Lua lines for the head of a script that only the newest leader may run; KEYS[1] is the fence, ARGV[1] the token."""


class Fenced(Exception):
    """A newer leader has taken over; this process must stop leading."""


@dataclass(frozen=True, slots=True)
class LeaderLease:
    """Proof of leadership; larger fencing tokens are newer."""

    controller_id: str
    fencing_token: int


class Leader:
    """At most one controller leads; the others stand by and try to acquire."""

    def __init__(self, connection: StoreConnection, keys: Keys) -> None:
        """Share the connection."""
        self._connection = connection
        self._keys = [keys.leader, keys.fence]
        self._acquire = connection.redis.register_script(_ACQUIRE)
        self._renew = connection.redis.register_script(_RENEW)
        self._release = connection.redis.register_script(_RELEASE)

    async def acquire(self, controller_id: str, ttl_s: float) -> LeaderLease | None:
        """Become leader when nobody is; None when somebody is."""
        token = int(await self._connection.run(self._acquire(keys=self._keys, args=[controller_id, int(ttl_s * 1000)])))
        return LeaderLease(controller_id, token) if token else None

    async def renew(self, lease: LeaderLease, ttl_s: float) -> bool:
        """Stay leader; False when a newer one has taken over."""
        args: list[int | str] = [lease.fencing_token, lease.controller_id, int(ttl_s * 1000)]
        return bool(await self._connection.run(self._renew(keys=self._keys, args=args)))

    async def release(self, lease: LeaderLease) -> None:
        """Step down, so that a standby need not wait for the lock to expire."""
        await self._connection.run(self._release(keys=self._keys[:1], args=[lease.fencing_token]))

    async def fence(self) -> int:
        """Return the newest fencing token; 0 when nobody has led yet."""
        return int(await self._connection.run(self._connection.redis.get(self._keys[1])) or 0)

    async def holder(self) -> LeaderLease | None:
        """Who leads now."""
        text = await self._connection.run(self._connection.redis.get(self._keys[0]))
        if not text:
            return None
        token, _, controller_id = text.partition(" ")
        return LeaderLease(controller_id, int(token))
