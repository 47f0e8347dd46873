"""Who leads: acquires the lock, keeps it, and says when another controller has taken over."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

from services.common.store import LeaderLease, Store, StoreUnavailable

log = logging.getLogger(__name__)


class Leadership:
    """The leader lock of this process; ttl_s: how long it outlives a leader that died."""

    def __init__(self, store: Store, controller_id: str, ttl_s: float = 3.0) -> None:
        """Prepare; nothing is sent yet."""
        self._store = store
        self._controller_id = controller_id
        self._ttl_s = ttl_s
        self._lease: LeaderLease | None = None

    @property
    def fencing_token(self) -> int:
        """Token of the lease that is held; 0 when none is."""
        return self._lease.fencing_token if self._lease else 0

    async def acquire(self, waiting: Callable[[str], None]) -> int:
        """Wait until this process leads and return its fencing token.

        waiting: told, for people, what is being waited for, whenever that changes.
        """
        told = ""
        while True:
            try:
                self._lease = await self._store.leader.acquire(self._controller_id, self._ttl_s)
                if self._lease is not None:
                    log.info("this controller leads (fencing token %d)", self._lease.fencing_token)
                    return self._lease.fencing_token
                holder = await self._store.leader.holder()
                who = holder.controller_id if holder else "another controller"
                why = f"standby: controller {who} leads; this one takes over when it stops"
            except StoreUnavailable as error:
                why = str(error)
            if why != told:
                log.warning("%s", why)
                waiting(why)
                told = why
            await asyncio.sleep(min(0.5, self._ttl_s / 4))

    async def keep(self) -> None:
        """Renew the lock; returns when another controller has taken over."""
        while self._lease is not None:
            await asyncio.sleep(self._ttl_s / 3)
            try:
                if not await self._store.leader.renew(self._lease, self._ttl_s):
                    log.error("another controller has taken over; this one stops serving")
                    self._lease = None
            except StoreUnavailable as error:
                # Nobody else can become leader either; running requests go on.
                log.warning("%s; running requests go on, new ones are refused until it is back", error)

    async def release(self) -> None:
        """Step down, so that a standby takes over at once."""
        lease, self._lease = self._lease, None
        if lease is not None:
            try:
                await self._store.leader.release(lease)
            except StoreUnavailable as error:
                log.warning("leadership not handed over (%s); it ends by itself within %g s", error, self._ttl_s)
