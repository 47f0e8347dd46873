"""The connection to a cluster: where it is, TLS and token, and gRPC errors turned into ours."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc

from cli import state
from cli.errors import CliError, Exit
from protos.slos.v1 import admin_pb2_grpc, client_pb2_grpc

DEFAULT_ADDRESS = "localhost:9000"
CALL_TIMEOUT_S = 10.0

EXIT_OF_STATUS = {
    grpc.StatusCode.UNAVAILABLE: Exit.UNREACHABLE,
    grpc.StatusCode.DEADLINE_EXCEEDED: Exit.UNREACHABLE,
    grpc.StatusCode.NOT_FOUND: Exit.NOT_FOUND,
    grpc.StatusCode.INVALID_ARGUMENT: Exit.REFUSED,
    grpc.StatusCode.ALREADY_EXISTS: Exit.REFUSED,
    grpc.StatusCode.FAILED_PRECONDITION: Exit.REFUSED,
    grpc.StatusCode.PERMISSION_DENIED: Exit.REFUSED,
    grpc.StatusCode.UNAUTHENTICATED: Exit.REFUSED,
    grpc.StatusCode.RESOURCE_EXHAUSTED: Exit.REFUSED,
}


@dataclass(slots=True)
class Target:
    """Where the cluster is and how to prove who we are; empty strings mean not set."""

    address: str = ""
    token: str = ""
    tls_ca: str = ""
    tls_cert: str = ""
    tls_key: str = ""

    def resolved_address(self) -> str:
        """Address given, else the cluster that `slosctl up` started from this folder, else the default port here."""
        if self.address:
            return self.address
        here = state.running()
        return here.grpc_address if here else DEFAULT_ADDRESS


@dataclass(frozen=True, slots=True)
class Connection:
    """The two APIs on one channel."""

    admin: admin_pb2_grpc.AdminStub
    client: client_pb2_grpc.ClientStub
    metadata: tuple[tuple[str, str], ...]
    address: str

    def call(self, method: Callable[..., Any], request: object, timeout_s: float = CALL_TIMEOUT_S) -> Any:
        """Call one method; CliError with a text for people when it fails."""
        with explained(self.address):
            return method(request, timeout=timeout_s, metadata=self.metadata)


@contextlib.contextmanager
def connect(target: Target) -> Iterator[Connection]:
    """Open a channel for as long as the block runs."""
    address = target.resolved_address()
    metadata = (("authorization", f"Bearer {target.token}"),) if target.token else ()
    with _channel(target, address) as channel:
        yield Connection(
            admin=admin_pb2_grpc.AdminStub(channel),
            client=client_pb2_grpc.ClientStub(channel),
            metadata=metadata,
            address=address,
        )


@contextlib.contextmanager
def explained(address: str) -> Iterator[None]:
    """Turn a gRPC error inside the block into a CliError."""
    try:
        yield
    except grpc.RpcError as error:
        raise explain(error, address) from error


def explain(error: grpc.RpcError, address: str) -> CliError:
    """Say what a gRPC error means for the person at the terminal."""
    code, details = error.code(), error.details() or ""
    exit_code = EXIT_OF_STATUS.get(code, Exit.FAILED)
    if code == grpc.StatusCode.UNAVAILABLE and _no_connection(details):
        return CliError(
            f"No controller answers at {address}. Start a cluster with `slosctl up`, or say where it is with "
            "--address or SLOS_ADDRESS.",
            exit_code,
        )
    if code == grpc.StatusCode.DEADLINE_EXCEEDED:
        return CliError(f"The controller at {address} did not answer in time.", exit_code)
    if code == grpc.StatusCode.UNAUTHENTICATED:
        return CliError(f"{details or 'Not authenticated'} (give --token or SLOS_TOKEN)", exit_code)
    return CliError(details or f"The controller answered {code.name}.", exit_code)


def _no_connection(details: str) -> bool:
    return any(word in details.lower() for word in ("failed to connect", "connection refused", "dns", "socket closed"))


def _channel(target: Target, address: str) -> grpc.Channel:
    # A proxy configured for web traffic must not see calls inside the cluster.
    options = (("grpc.enable_http_proxy", 0), ("grpc.max_receive_message_length", 64 * 1024 * 1024))
    if not (target.tls_ca or target.tls_cert):
        return grpc.insecure_channel(address, options=options)
    credentials = grpc.ssl_channel_credentials(_read(target.tls_ca), _read(target.tls_key), _read(target.tls_cert))
    return grpc.secure_channel(address, credentials, options=options)


def _read(path: str) -> bytes | None:
    if not path:
        return None
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise CliError(f"Cannot read {path}: {os.strerror(error.errno or 0)}.", Exit.USAGE) from error
