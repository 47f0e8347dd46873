"""gRPC servers and channels of the cluster, with TLS, token and limits as set."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import grpc

from services.common.security import SecurityError, SecuritySettings, read_file, server_credentials, server_interceptors
from services.common.well_formed import WellFormed

PROTO_VERSION = 1
"""Version of the worker API that this release speaks."""

Options = Sequence[tuple[str, Any]]

_LIMITS: list[tuple[str, Any]] = [
    ("grpc.max_receive_message_length", 64 * 1024 * 1024),
    ("grpc.max_send_message_length", 64 * 1024 * 1024),
    ("grpc.keepalive_time_ms", 10_000),
    ("grpc.keepalive_timeout_ms", 5_000),
]
_SERVER_LIMITS: list[tuple[str, Any]] = [
    *_LIMITS,
    # Two servers on one port would share its calls; the second one must be told instead.
    ("grpc.so_reuseport", 0),
    # Clients may ping as often as our own channels do.
    ("grpc.http2.min_ping_interval_without_data_ms", 5_000),
]


def new_server(
    settings: SecuritySettings,
    interceptors: Sequence[grpc.aio.ServerInterceptor] = (),
    options: Options = (),
    open_services: Sequence[str] = (),
) -> grpc.aio.Server:
    """Make a server. Where a cluster token is set, only callers with it get in, except to open_services."""
    gate = server_interceptors(settings, open_services)
    return grpc.aio.server(interceptors=[*gate, *interceptors, WellFormed()], options=[*_SERVER_LIMITS, *options])


def add_port(server: grpc.aio.Server, address: str, settings: SecuritySettings) -> int:
    """Let a server listen, with TLS when it is on; returns the port. SecurityError when the address is taken."""
    credentials = server_credentials(settings)
    try:
        port = (
            server.add_secure_port(address, credentials)
            if credentials is not None
            else server.add_insecure_port(address)
        )
    except RuntimeError as error:
        raise SecurityError(f"Cannot listen on {address}: {error}; is the port in use?") from error
    if port == 0:
        raise SecurityError(f"Cannot listen on {address}: the port is in use or the address is not of this machine")
    return int(port)


def open_channel(address: str, settings: SecuritySettings, options: Options = ()) -> grpc.aio.Channel:
    """Open a channel to another part of the cluster that carries TLS and the token as set."""
    interceptors = _token_interceptors(settings.token) if settings.token else None
    if not settings.tls:
        return grpc.aio.insecure_channel(address, options=[*_LIMITS, *options], interceptors=interceptors)
    credentials = grpc.ssl_channel_credentials(
        read_file(settings.tls_ca) if settings.tls_ca else None,
        read_file(settings.tls_key) if settings.tls_key else None,
        read_file(settings.tls_cert) if settings.tls_cert else None,
    )
    return grpc.aio.secure_channel(address, credentials, options=[*_LIMITS, *options], interceptors=interceptors)


def _token_interceptors(token: str) -> list[grpc.aio.ClientInterceptor]:
    def with_token(details: grpc.aio.ClientCallDetails) -> grpc.aio.ClientCallDetails:
        metadata = grpc.aio.Metadata(*(details.metadata or ()))
        metadata.add("authorization", f"Bearer {token}")
        return details._replace(metadata=metadata)

    class UnaryUnary(grpc.aio.UnaryUnaryClientInterceptor):  # type: ignore[misc]
        async def intercept_unary_unary(self, continuation: Any, client_call_details: Any, request: Any) -> Any:
            return await continuation(with_token(client_call_details), request)

    class UnaryStream(grpc.aio.UnaryStreamClientInterceptor):  # type: ignore[misc]
        async def intercept_unary_stream(self, continuation: Any, client_call_details: Any, request: Any) -> Any:
            return await continuation(with_token(client_call_details), request)

    class StreamStream(grpc.aio.StreamStreamClientInterceptor):  # type: ignore[misc]
        async def intercept_stream_stream(self, continuation: Any, client_call_details: Any, requests: Any) -> Any:
            return await continuation(with_token(client_call_details), requests)

    return [UnaryUnary(), UnaryStream(), StreamStream()]
