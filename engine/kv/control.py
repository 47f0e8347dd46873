"""Framed JSON messages over a TCP socket: what a pair says about the bytes it moves."""

from __future__ import annotations

import contextlib
import json
import select
import socket
import struct
import threading
import time
from typing import Any

from engine.kv.config import KvExchangeError

_HEADER = struct.Struct("!I")
_MAX_FRAME_BYTES = 1 << 20


class ControlSocket:
    """One end of a control connection; sends are atomic, receives belong to one thread."""

    def __init__(self, sock: socket.socket, io_timeout_s: float) -> None:
        """Take over a connected socket; a send that takes longer than io_timeout_s fails."""
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._sock = sock
        self._io_timeout_s = io_timeout_s
        self._send_lock = threading.Lock()
        self._buffer = bytearray()
        self.local_host: str = sock.getsockname()[0]
        self.peer_host: str = sock.getpeername()[0]
        sock.settimeout(io_timeout_s)

    def send(self, message: dict[str, Any]) -> None:
        """Send one message; KvExchangeError when the peer is gone or does not read."""
        data = json.dumps(message, separators=(",", ":")).encode()
        if len(data) > _MAX_FRAME_BYTES:
            raise KvExchangeError(f"control message of {len(data)} bytes is too large")
        try:
            with self._send_lock:
                self._sock.sendall(_HEADER.pack(len(data)) + data)
        except OSError as error:
            raise KvExchangeError(f"control connection broke while sending: {error}") from error

    def receive(self, timeout_s: float) -> dict[str, Any] | None:
        """Return the next message, None when none is whole after timeout_s; KvExchangeError when the peer is gone."""
        deadline = time.monotonic() + timeout_s
        while (message := self._parse()) is None:
            left = deadline - time.monotonic()
            if left <= 0:
                return None
            try:
                # Polled apart: a timeout set on the socket itself would also bound the sends of other threads.
                self._wait_readable(left)
                data = self._sock.recv(65536)
            except TimeoutError:
                return None
            except (OSError, ValueError) as error:
                raise KvExchangeError(f"control connection broke: {error}") from error
            if not data:
                raise KvExchangeError("peer closed the control connection")
            self._buffer += data
        return message

    def _wait_readable(self, timeout_s: float) -> None:
        poller = select.poll()
        poller.register(self._sock, select.POLLIN)
        if not poller.poll(timeout_s * 1000):
            raise TimeoutError

    def _parse(self) -> dict[str, Any] | None:
        if len(self._buffer) < _HEADER.size:
            return None
        (size,) = _HEADER.unpack_from(self._buffer)
        if size > _MAX_FRAME_BYTES:
            raise KvExchangeError(f"peer announced a control message of {size} bytes: not a KV endpoint?")
        if len(self._buffer) < _HEADER.size + size:
            return None
        data = bytes(self._buffer[_HEADER.size : _HEADER.size + size])
        del self._buffer[: _HEADER.size + size]
        try:
            message = json.loads(data)
        except ValueError as error:
            raise KvExchangeError(f"peer sent a control message that is not JSON: {error}") from error
        if not isinstance(message, dict):
            raise KvExchangeError("peer sent a control message that is not an object")
        return message

    def close(self) -> None:
        """Close the connection; a thread inside receive sees the peer as gone."""
        with contextlib.suppress(OSError):
            self._sock.shutdown(socket.SHUT_RDWR)
        with contextlib.suppress(OSError):
            self._sock.close()


def dial(address: str, timeout_s: float, io_timeout_s: float) -> ControlSocket:
    """Connect to host:port; KvExchangeError when nobody answers in time."""
    host, _, port = address.rpartition(":")
    if not host or not port.isdigit():
        raise KvExchangeError(f"KV address must be host:port, not {address!r}")
    try:
        return ControlSocket(socket.create_connection((host.strip("[]"), int(port)), timeout=timeout_s), io_timeout_s)
    except OSError as error:
        raise KvExchangeError(f"cannot reach the KV endpoint {address}: {error}") from error
