"""Decode halves that wait to be told where their KV lies: for transports that need the prefill engine's word first."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable

from engine.protocol import EngineError, EngineRequest, RequestRejected

log = logging.getLogger(__name__)

HOLD_S = 60.0
"""Longest wait for the end of a prefill half; the prompt is computed here after that."""


class HeldRequests:
    """Requests that an engine has taken and does not run yet."""

    def __init__(
        self,
        add: Callable[[EngineRequest, str], Awaitable[None]],
        fail: Callable[[str, str], None],
        hold_s: float = HOLD_S,
    ) -> None:
        """add: runs a request, with the handle of its KV. fail: ends one that cannot be run; takes its id and why."""
        self._add = add
        self._fail = fail
        self._hold_s = hold_s
        self._held: dict[str, tuple[EngineRequest, asyncio.TimerHandle]] = {}
        self._late: set[asyncio.Task[None]] = set()

    def hold(self, request: EngineRequest) -> None:
        """Keep a request."""
        timer = asyncio.get_running_loop().call_later(self._hold_s, self._give_up, request.request_id)
        self._held[request.request_id] = (request, timer)

    async def release(self, request_id: str, kv_handle: str) -> None:
        """Run a request whose KV is where the handle says, or which computes its prompt; unknown ids are ignored."""
        request = self._take(request_id)
        if request is None:
            return
        try:
            await self._add(request, kv_handle)
        except RequestRejected as error:
            self._fail(request_id, str(error))

    def drop(self, request_id: str) -> bool:
        """Forget a request; False when it is not held."""
        return self._take(request_id) is not None

    def close(self) -> None:
        """Forget all of them."""
        for request_id in list(self._held):
            self.drop(request_id)
        for task in self._late:
            task.cancel()

    def _take(self, request_id: str) -> EngineRequest | None:
        if request_id not in self._held:
            return None
        request, timer = self._held.pop(request_id)
        timer.cancel()
        return request

    def _give_up(self, request_id: str) -> None:
        log.warning("nobody has said where the KV of %s lies: its prompt is computed here", request_id)
        task = asyncio.get_running_loop().create_task(self._compute_here(request_id), name=f"late {request_id}")
        self._late.add(task)
        task.add_done_callback(self._late.discard)

    async def _compute_here(self, request_id: str) -> None:
        try:
            await self.release(request_id, "")
        except EngineError as error:
            # The engine is gone, and has said so to everybody who waits for it.
            log.error("%s was not run: %s", request_id, error)
