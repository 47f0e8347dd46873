"""The worker's entry in the registry and its lease, kept up whatever Redis does."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

from services.common.store import LeaseState, ReplicaRecord, Store, StoreUnavailable

log = logging.getLogger(__name__)


class WorkerIdTaken(Exception):
    """Another process has registered under this worker id."""


class Registration:
    """Registers, renews, and registers again when Redis has forgotten."""

    def __init__(self, store: Store, make_record: Callable[[], ReplicaRecord], lease_s: float) -> None:
        """Prepare; make_record gives the entry as it is now."""
        self._store = store
        self._make_record = make_record
        self._lease_s = lease_s
        self._changed = asyncio.Event()
        self._registered = False
        self._said_down = False

    def changed(self) -> None:
        """Write the entry anew, soon."""
        self._changed.set()

    async def run(self) -> None:
        """Hold the lease until cancelled; WorkerIdTaken when another process has it."""
        while True:
            try:
                await self._hold()
                if self._said_down:
                    log.info("Redis answers again")
                self._said_down = False
            except StoreUnavailable as error:
                if not self._said_down:
                    log.error("%s; running requests go on, the registry is tried again", error)
                self._said_down = True
                self._changed.set()
                await asyncio.sleep(min(1.0, self._lease_s / 5))
                continue
            try:
                async with asyncio.timeout(self._lease_s / 3):
                    await self._changed.wait()
            except TimeoutError:
                pass

    async def end(self) -> None:
        """Give the lease back, so that nobody waits for its end."""
        record = self._make_record()
        try:
            await self._store.replicas.deregister(record.worker_id, record.incarnation)
        except StoreUnavailable as error:
            log.warning("the lease ends by itself: %s", error)

    async def _hold(self) -> None:
        record = self._make_record()
        if self._registered:
            state = await self._store.replicas.renew(record.worker_id, record.incarnation, self._lease_s)
            if state is LeaseState.TAKEN:
                raise WorkerIdTaken(
                    f"another process has registered as worker {record.worker_id}; give each worker an id of its own"
                )
            if state is LeaseState.RENEWED and not self._changed.is_set():
                return
        self._changed.clear()
        try:
            await self._store.replicas.register(record, self._lease_s)
        except StoreUnavailable:
            self._changed.set()
            raise
        self._registered = True
        log.info("registered", extra={"worker": record.worker_id, "address": record.address})
