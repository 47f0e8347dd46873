"""What the front doors (HTTP, gRPC) ask of the controller's core, and the one error type between them."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Protocol

from protos.slos.v1 import client_pb2, common_pb2


class ApiError(Exception):
    """A request that is not served; the text says what to do about it.

    code: gRPC status name (INVALID_ARGUMENT, NOT_FOUND, ALREADY_EXISTS, RESOURCE_EXHAUSTED, UNAVAILABLE, INTERNAL ...).
    param: name of the field at fault, in the caller's own terms; None when there is none.
    retry_after_s: when trying again makes sense; None when it does not.
    """

    def __init__(self, code: str, message: str, param: str | None = None, retry_after_s: float | None = None) -> None:
        """Keep all parts."""
        super().__init__(message)
        self.code = code
        self.message = message
        self.param = param
        self.retry_after_s = retry_after_s


@dataclass(frozen=True, slots=True)
class GenerationCall:
    """One request as a front door hands it in; token ids are those of the rendered prompt.

    received_s: time.monotonic() when the body was received: the arrival that SLOs count from.
    thinks: the rendered prompt leads the model into a thinking stage.
    """

    model: str
    token_ids: tuple[int, ...]
    sampling: common_pb2.Sampling
    slo: common_pb2.SloSpec
    received_s: float
    request_id: str = ""
    session_id: str = ""
    tenant: str = ""
    has_tools: bool = False
    thinks: bool = False


class Gateway(Protocol):
    """The controller's core, as front doors see it."""

    def generate(self, call: GenerationCall) -> AsyncIterator[client_pb2.GenerateResponse]:
        """Validate, admit, serve. Raises ApiError before the first message for anything wrong with the call.

        The first message carries the promise (sent as soon as it is known), the last finish_reason, counts and outcome.
        A failure after the first message ends it with finish_reason ERROR and the error text in that last message.
        Closing the iterator early cancels the request and frees everything it held.
        The front door calls nothing else per token: time of a token is when the core hands it over.
        """
        ...

    async def cancel(self, request_id: str) -> bool:
        """Cancel a running request; False when there is none."""
        ...

    def models(self) -> list[client_pb2.Model]:
        """Models known to the cluster, ready or not."""
        ...

    def ready(self) -> str:
        """Empty when requests can be served, else what is missing, for people."""
        ...
