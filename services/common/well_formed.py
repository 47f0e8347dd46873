"""What gRPC servers answer to bytes that are no message: the caller's mistake by name, not an exception in the log."""

from __future__ import annotations

import inspect
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any, NoReturn

import grpc
from google.protobuf.message import DecodeError


@dataclass(frozen=True, slots=True)
class _Malformed:
    """Stands for a request that could not be read."""

    reason: str


class WellFormed(grpc.aio.ServerInterceptor):  # type: ignore[misc]
    """Ends calls whose request is malformed with INVALID_ARGUMENT.

    In a stream of requests a malformed one counts as an empty one: what it means that nothing was said, the method
    knows, and what came before it on the stream goes on.
    """

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[grpc.RpcMethodHandler]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> grpc.RpcMethodHandler:
        """See grpc.aio.ServerInterceptor."""
        handler = await continuation(handler_call_details)
        if handler is None or handler.request_deserializer is None:
            return handler
        decode = handler.request_deserializer
        if handler.request_streaming:
            return handler._replace(request_deserializer=lambda raw: _decoded(decode, raw, lambda _: decode(b"")))
        lenient = handler._replace(request_deserializer=lambda raw: _decoded(decode, raw, _Malformed))
        if not handler.response_streaming:
            return lenient._replace(unary_unary=_checked(handler.unary_unary))
        inner = handler.unary_stream
        checked = _checked_stream(inner) if inspect.isasyncgenfunction(inner) else _checked(inner)
        return lenient._replace(unary_stream=checked)


def _decoded(decode: Callable[[bytes], Any], raw: bytes, otherwise: Callable[[str], Any]) -> Any:
    try:
        return decode(raw)
    except DecodeError as error:
        return otherwise(str(error))


def _checked(method: Callable[..., Awaitable[Any]]) -> Callable[..., Awaitable[Any]]:
    async def call(request: Any, context: grpc.aio.ServicerContext) -> Any:
        if isinstance(request, _Malformed):
            await _refuse(request, context)
        return await method(request, context)

    return call


def _checked_stream(method: Callable[..., Any]) -> Callable[..., AsyncIterator[Any]]:
    async def call(request: Any, context: grpc.aio.ServicerContext) -> AsyncIterator[Any]:
        if isinstance(request, _Malformed):
            await _refuse(request, context)
        # Closed with this one, so that a client's going away still ends the method at once.
        async with aclosing(method(request, context)) as messages:
            async for message in messages:
                yield message

    return call


async def _refuse(request: _Malformed, context: grpc.aio.ServicerContext) -> NoReturn:
    text = f"the request is malformed: {request.reason}; encode it as protos/slos/v1 says"
    await context.abort(grpc.StatusCode.INVALID_ARGUMENT, text)
    raise AssertionError("abort does not return")
