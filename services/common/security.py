"""TLS and tokens between the parts of a cluster, and API keys of clients.

All of it is off by default. With a certificate and key every gRPC server of the process speaks TLS; with an authority
file clients check servers against it, and servers ask clients for a certificate (mutual TLS) when told to. The cluster
token is a shared secret that every call between parts carries; without TLS it crosses the network in the clear, so use
it without TLS only where the network itself is trusted.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import hmac
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import grpc

_FIRST_MESSAGE_TIMEOUT_S = 1.0
_HEALTH_PREFIX = "/grpc.health.v1.Health/"


class SecurityError(Exception):
    """A security setting cannot be used; the text says which and why."""


@dataclass(frozen=True, slots=True)
class SecuritySettings:
    """File paths, PEM; empty means off.

    token: shared secret between the parts. require_client_cert: servers take only clients that tls_ca has signed.
    """

    tls_cert: str = ""
    tls_key: str = ""
    tls_ca: str = ""
    token: str = ""
    require_client_cert: bool = False

    @property
    def tls(self) -> bool:
        """TLS is on: servers have a certificate, or clients an authority to check against."""
        return bool(self.tls_cert or self.tls_ca)


def server_credentials(settings: SecuritySettings) -> grpc.ServerCredentials | None:
    """Return what a gRPC server port needs; None for plain text. SecurityError when the files do not fit."""
    if not settings.tls_cert and not settings.tls_key:
        if settings.tls_ca:
            raise SecurityError("A TLS authority is set without certificate and key; a server needs all three")
        return None
    if not (settings.tls_cert and settings.tls_key):
        raise SecurityError("TLS needs both the certificate and the key; set both or neither")
    if settings.require_client_cert and not settings.tls_ca:
        raise SecurityError("Client certificates can only be required with a TLS authority to check them against")
    authority = read_file(settings.tls_ca) if settings.tls_ca else None
    return grpc.ssl_server_credentials(
        [(read_file(settings.tls_key), read_file(settings.tls_cert))], authority, settings.require_client_cert
    )


def server_interceptors(
    settings: SecuritySettings, open_services: Sequence[str] = ()
) -> list[grpc.aio.ServerInterceptor]:
    """Return what a server needs so that only callers with the token get in.

    open_services: full names of services that everybody may call; health checks always are.
    """
    return [_TokenCheck(settings.token, open_services)] if settings.token else []


def carries_token(settings: SecuritySettings, authorization: str | None) -> bool:
    """Whether an `authorization` header carries the cluster token; never where none is set."""
    return bool(settings.token) and hmac.compare_digest(_bearer(authorization).encode(), settings.token.encode())


class ApiKeys:
    """Keys of clients, each belonging to a tenant; with no keys at all every client is let in."""

    def __init__(self, path: str = "") -> None:
        """Read a file of lines `tenant key`, # for comments; SecurityError when it cannot be read."""
        self._tenants: dict[bytes, str] = {}
        if not path:
            return
        for number, line in enumerate(read_file(path).decode(errors="replace").splitlines(), start=1):
            words = line.split()
            if not words or words[0].startswith("#"):
                continue
            if len(words) != 2:
                raise SecurityError(f"{path}, line {number}: write a tenant and a key, separated by a space")
            self._tenants[_digest(words[1])] = words[0]
        if not self._tenants:
            raise SecurityError(f"{path} holds no API key; add a line `tenant key` or do not set the file")

    @property
    def required(self) -> bool:
        """Clients must show a key."""
        return bool(self._tenants)

    def tenant(self, authorization: str | None) -> str | None:
        """Return the tenant of an `Authorization: Bearer KEY` header; None when the key is missing or unknown."""
        return self._tenants.get(_digest(_bearer(authorization)))


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode()).digest()


def _bearer(authorization: str | None) -> str:
    scheme, _, word = (authorization or "").strip().partition(" ")
    return word.strip() if scheme.lower() == "bearer" else ""


def read_file(path: str) -> bytes:
    """Return a file's bytes; SecurityError when it cannot be read."""
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise SecurityError(f"Cannot read {path}: {error.strerror}; check the path and its permissions") from error


class _TokenCheck(grpc.aio.ServerInterceptor):  # type: ignore[misc]
    """Refuses calls without the token, except health checks and services that are open to all."""

    def __init__(self, token: str, open_services: Sequence[str]) -> None:
        self._token = token
        self._open = (_HEALTH_PREFIX, *(f"/{name}/" for name in open_services))

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[grpc.RpcMethodHandler]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> grpc.RpcMethodHandler:
        handler = await continuation(handler_call_details)
        metadata = dict(handler_call_details.invocation_metadata)
        if (
            handler is None
            or handler_call_details.method.startswith(self._open)
            or hmac.compare_digest(_bearer(metadata.get("authorization")).encode(), self._token.encode())
        ):
            return handler
        return _refusing(handler)


def _refusing(handler: grpc.RpcMethodHandler) -> grpc.RpcMethodHandler:
    """Return a handler of the same kind that answers UNAUTHENTICATED."""
    reason = "the cluster token is missing or wrong; give both ends the same token"

    async def refuse(_: object, context: grpc.aio.ServicerContext) -> None:
        await context.abort(grpc.StatusCode.UNAUTHENTICATED, reason)

    async def refuse_stream(_: object, context: grpc.aio.ServicerContext) -> None:
        # A caller whose first write meets a closed stream would be told of that instead of the reason.
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_FIRST_MESSAGE_TIMEOUT_S):
                await context.read()
        await context.abort(grpc.StatusCode.UNAUTHENTICATED, reason)

    if handler.request_streaming and handler.response_streaming:
        return grpc.stream_stream_rpc_method_handler(refuse_stream)
    if handler.request_streaming:
        return grpc.stream_unary_rpc_method_handler(refuse_stream)
    if handler.response_streaming:
        return grpc.unary_stream_rpc_method_handler(refuse)
    return grpc.unary_unary_rpc_method_handler(refuse)
