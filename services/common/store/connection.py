"""The connection to Redis: bounded, self-healing, and clear when it fails."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit, urlunsplit

import redis.asyncio as redis_asyncio
from redis.asyncio.retry import Retry
from redis.backoff import ConstantBackoff
from redis.exceptions import (
    AuthenticationError,
    AuthorizationError,
    BusyLoadingError,
    NoPermissionError,
    OutOfMemoryError,
    RedisError,
)

_CONNECTIONS = 32


class StoreUnavailable(Exception):
    """Redis does not answer, or refuses; the text says which and what to do."""


@dataclass(frozen=True, slots=True)
class StoreSettings:
    """Where Redis is; times in seconds.

    url: redis://[:password@]host:port/db, rediss:// for TLS, unix:///path/to/socket. prefix keeps clusters apart.
    tls_ca: file with the authority that signed Redis' certificate; empty for the system's.
    """

    url: str = "redis://127.0.0.1:6379/0"
    prefix: str = "slos"
    connect_timeout_s: float = 1.0
    call_timeout_s: float = 2.0
    tls_ca: str = ""


def redact(url: str) -> str:
    """Return the URL without its password, for messages and logs."""
    parts = urlsplit(url)
    if parts.password is None:
        return url
    user, _, host = parts.netloc.rpartition("@")
    return urlunsplit(parts._replace(netloc=f"{user.partition(':')[0]}:***@{host}"))


class StoreConnection:
    """One pool of connections; every call goes through run()."""

    def __init__(self, settings: StoreSettings) -> None:
        """Check the URL; ValueError says what is wrong with it."""
        self._settings = settings
        self._where = redact(settings.url)
        self.available = True
        self._slots = asyncio.Semaphore(_CONNECTIONS)
        self._calls: set[asyncio.Task[Any]] = set()
        options: dict[str, Any] = {"ssl_ca_certs": settings.tls_ca} if settings.tls_ca else {}
        try:
            # One quick retry replaces connections that a restart of Redis has cut; all our calls may be repeated.
            self.redis = redis_asyncio.Redis.from_url(
                settings.url,
                decode_responses=True,
                socket_timeout=settings.call_timeout_s,
                socket_connect_timeout=settings.connect_timeout_s,
                retry=Retry(ConstantBackoff(0.05), 1),
                client_name="slos",
                max_connections=2 * _CONNECTIONS,
                **options,
            )
        except ValueError as error:
            raise ValueError(
                f"The Redis URL {self._where!r} cannot be used ({error}); write redis://host:port/0, rediss:// or unix://"
            ) from error

    async def run(self, call: Any) -> Any:
        """Await one call to Redis and give its answer; StoreUnavailable when it fails or takes too long.

        Untyped, since the client's annotations leave open whether answers are text and whether calls are awaitable.
        """
        # A task of its own, since the client's calls now and then swallow their cancellation; ours must not.
        task = asyncio.create_task(self._bounded(call))
        self._calls.add(task)
        task.add_done_callback(self._ended)
        # Twice the socket's limit, since one retry is allowed.
        limit_s = 2 * (self._settings.call_timeout_s + self._settings.connect_timeout_s)
        done, _ = await asyncio.wait({task}, timeout=limit_s)
        try:
            if not done:
                task.cancel()
                raise TimeoutError(f"no answer within {limit_s:g} s")
            answer = task.result()
        except (RedisError, OSError, TimeoutError) as error:
            self.available = False
            raise StoreUnavailable(self._explain(error)) from error
        self.available = True
        return answer

    async def close(self) -> None:
        """Close every connection, when the calls under way have had a moment to end."""
        if self._calls:
            await asyncio.wait(self._calls, timeout=self._settings.call_timeout_s)
        await self.redis.aclose()

    async def _bounded(self, call: Any) -> Any:
        async with self._slots:
            return await call

    def _ended(self, task: asyncio.Task[Any]) -> None:
        self._calls.discard(task)
        if not task.cancelled():
            task.exception()  # seen, even when the caller has gone

    def _explain(self, error: BaseException) -> str:
        if isinstance(error, AuthenticationError | AuthorizationError | NoPermissionError) or "NOAUTH" in str(error):
            return f"Redis at {self._where} refuses our login ({error}); put the right password into the Redis URL"
        if isinstance(error, BusyLoadingError):
            return f"Redis at {self._where} is still loading its data; it will answer when that is done"
        if isinstance(error, OutOfMemoryError):
            return f"Redis at {self._where} is out of memory ({error}); raise maxmemory or remove old data"
        detail = str(error) or type(error).__name__
        return f"Redis at {self._where} does not answer ({detail}); start it or correct the Redis URL"
