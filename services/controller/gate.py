"""The Gateway that front doors hold: the core while this process leads, a clear refusal while it does not."""

from __future__ import annotations

from collections.abc import AsyncIterator

from protos.slos.v1 import client_pb2
from services.controller.contract import ApiError, GenerationCall
from services.controller.core import Core

RETRY_AFTER_S = 2.0


class Gate:
    """Forwards to the core that is current."""

    def __init__(self, reason: str = "the controller is starting") -> None:
        """Start closed."""
        self._core: Core | None = None
        self._reason = reason

    def open(self, core: Core) -> None:
        """Let calls through."""
        self._core = core
        self._reason = ""

    def close(self, reason: str) -> None:
        """Refuse calls, with the reason."""
        self._core = None
        self._reason = reason

    @property
    def core(self) -> Core:
        """The core; ApiError UNAVAILABLE while there is none."""
        if self._core is None:
            raise ApiError("UNAVAILABLE", self._reason, retry_after_s=RETRY_AFTER_S)
        return self._core

    def generate(self, call: GenerationCall) -> AsyncIterator[client_pb2.GenerateResponse]:
        """See Gateway."""
        return self.core.generate(call)

    async def cancel(self, request_id: str) -> bool:
        """See Gateway."""
        return await self.core.cancel(request_id)

    def models(self) -> list[client_pb2.Model]:
        """See Gateway."""
        return self._core.models() if self._core is not None else []

    def ready(self) -> str:
        """See Gateway."""
        return self._core.ready() if self._core is not None else self._reason
