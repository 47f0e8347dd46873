"""Writes the journal behind the requests: in batches, again after Redis was away, and only then acknowledges events."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Iterable
from typing import Protocol, TypeVar

from google.protobuf import json_format

from services.common.store import Fenced, Store, StoreUnavailable
from services.controller.request import LiveRequest

log = logging.getLogger(__name__)

FLUSH_S = 0.1
RETRY_S = 0.5
UNJOURNALED_EVENTS = 2000
"""Events a worker keeps for us at most while Redis is away; this process has their tokens in memory."""
_AT_ONCE = 64
_T = TypeVar("_T")


class Acknowledged(Protocol):
    """A replica whose events are acknowledged."""

    last_event: int
    acknowledged: int

    def acknowledge(self, event: int) -> None:
        """Let the worker drop its events up to this one."""
        ...


def header(request: LiveRequest) -> dict[str, object]:
    """Return what a new leader needs to know of a request."""
    call = request.call
    return {
        "model": call.model,
        "token_ids": list(call.token_ids),
        "sampling": json_format.MessageToDict(request.sampling, preserving_proto_field_name=True),
        "slo": json_format.MessageToDict(call.slo, preserving_proto_field_name=True),
        "slo_class": request.slo_class,
        "tenant": request.tenant,
        "session_id": call.session_id,
        "has_tools": call.has_tools,
        "thinks": call.thinks,
        # Wall clock: the monotonic one does not outlive the machine.
        "arrived_unix_s": time.time() - (time.monotonic() - request.arrival_s),
    }


class JournalWriter:
    """One task that brings Redis up to date, a tenth of a second behind at most while Redis answers."""

    def __init__(
        self,
        store: Store,
        token: Callable[[], int],
        replicas: Callable[[], Iterable[Acknowledged]],
        fenced: Callable[[], None],
    ) -> None:
        """token: fencing token. fenced: called when a newer leader has taken over."""
        self._store = store
        self._token = token
        self._replicas = replicas
        self._fenced = fenced
        self._wake = asyncio.Event()
        self._to_open: dict[str, dict[str, object]] = {}
        self._dirty: dict[str, LiveRequest] = {}
        self._to_close: dict[str, dict[str, object]] = {}
        self._close_first: dict[str, dict[str, object]] = {}
        self._written: dict[str, int] = {}
        self._to_queue: dict[str, float] = {}
        self._unqueue: set[str] = set()
        self._queued: set[str] = set()

    def opened(self, request: LiveRequest) -> None:
        """A request was taken, said once or again; its id may be that of one that has just ended."""
        if request.request_id in self._written and request.request_id not in self._to_close:
            return
        if request.request_id in self._to_close:
            self._close_first[request.request_id] = self._to_close.pop(request.request_id)
        self._to_open[request.request_id] = header(request)
        self._written[request.request_id] = 0
        self._wake.set()

    def touched(self, request: LiveRequest) -> None:
        """A request has new tokens."""
        if request.request_id in self._written:
            self._dirty[request.request_id] = request
            self._wake.set()

    def queued(self, request: LiveRequest) -> None:
        """A request waits in the best-effort queue."""
        self._unqueue.discard(request.request_id)
        self._queued.add(request.request_id)
        self._to_queue[request.request_id] = time.time() - (time.monotonic() - request.arrival_s)
        self._wake.set()

    def unqueued(self, request: LiveRequest) -> None:
        """A request waits no longer."""
        if request.request_id not in self._queued:
            return
        self._queued.remove(request.request_id)
        if self._to_queue.pop(request.request_id, None) is None:
            self._unqueue.add(request.request_id)
            self._wake.set()

    def closed(self, request: LiveRequest, closing: dict[str, object]) -> None:
        """A request has ended."""
        self._dirty.pop(request.request_id, None)
        if request.request_id in self._written:
            self._to_close[request.request_id] = closing
            self._wake.set()

    @property
    def backlog(self) -> int:
        """Requests with something to write."""
        return len(self._to_open) + len(self._dirty) + len(self._to_close)

    async def run(self) -> None:
        """Write until cancelled."""
        while True:
            await self._wake.wait()
            await asyncio.sleep(FLUSH_S)
            self._wake.clear()
            try:
                await self.flush()
            except StoreUnavailable as error:
                log.debug("journal not written: %s", error)
                self._acknowledge_overdue()
                self._wake.set()
                await asyncio.sleep(RETRY_S)
            except Fenced:
                self._fenced()
                return

    async def flush(self) -> None:
        """Write everything that is due; StoreUnavailable when Redis does not answer (nothing is forgotten then)."""
        seen = [(replica, replica.last_event) for replica in self._replicas()]
        journal, token = self._store.journal, self._token()
        await self._close(self._close_first)
        for batch in _batches(list(self._to_open.items())):
            await asyncio.gather(*(journal.open(request_id, facts, token) for request_id, facts in batch))
            for request_id, facts in batch:
                if self._to_open.get(request_id) is facts:
                    del self._to_open[request_id]
        for requests in _batches([r for r in self._dirty.values() if r.request_id not in self._to_open]):
            entries = {}
            for request in requests:
                start = self._written.get(request.request_id, 0)
                entries[request.request_id] = {start: {"token_ids": request.output[start:]}}
            written = {request.request_id: len(request.output) for request in requests}
            await journal.append(entries, token)
            for request in requests:
                if request.request_id in self._written:
                    self._written[request.request_id] = written[request.request_id]
                if len(request.output) == written[request.request_id]:
                    self._dirty.pop(request.request_id, None)
        await self._flush_queue()
        for request_id in await self._close(self._to_close):
            self._written.pop(request_id, None)
        for replica, event in seen:
            replica.acknowledge(event)

    async def _close(self, closings: dict[str, dict[str, object]]) -> list[str]:
        """Write closings and forget them, unless they were changed meanwhile; return the ids that are done."""
        done = []
        for batch in _batches(list(closings.items())):
            journal, token = self._store.journal, self._token()
            await asyncio.gather(*(journal.close(request_id, facts, token) for request_id, facts in batch))
            for request_id, facts in batch:
                if closings.get(request_id) is facts:
                    del closings[request_id]
                    done.append(request_id)
        return done

    async def _flush_queue(self) -> None:
        queue = self._store.best_effort
        waiting, gone = dict(self._to_queue), set(self._unqueue)
        for request_id, arrived in waiting.items():
            await queue.push(request_id, arrived)
            if self._to_queue.get(request_id) == arrived:
                del self._to_queue[request_id]
            else:
                self._unqueue.add(request_id)
        await queue.remove(gone)
        self._unqueue -= gone

    def _acknowledge_overdue(self) -> None:
        for replica in self._replicas():
            if replica.last_event - replica.acknowledged > UNJOURNALED_EVENTS:
                replica.acknowledge(replica.last_event)


def _batches(items: list[_T]) -> Iterable[list[_T]]:
    return (items[start : start + _AT_ONCE] for start in range(0, len(items), _AT_ONCE))
