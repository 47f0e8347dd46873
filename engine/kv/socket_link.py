"""The data path of a pair whose caches lie in host memory: a TCP connection, to and from which the kernel copies.

A process group moves one contiguous tensor: blocks must be copied into it, and out of it again at the other end.
sendmsg and recvmsg take a list of the blocks where they lie, and spare both copies.
"""

from __future__ import annotations

import contextlib
import hmac
import secrets
import socket
import struct
import time
from collections.abc import Callable, Sequence

from engine.kv.config import KvConfig, KvExchangeError

_AT_ONCE = 1024
"""Regions per system call: the most that the kernel takes."""


class SocketLink:
    """A connection of a producer and a consumer; each end is used by one thread."""

    def __init__(self, sock: socket.socket, io_timeout_s: float) -> None:
        """Take over a connected socket; what does not move for io_timeout_s fails."""
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        # The kernel's timeouts, not Python's: with those every call would return with the part that is there at once.
        sock.settimeout(None)
        for option in (socket.SO_RCVTIMEO, socket.SO_SNDTIMEO):
            sock.setsockopt(socket.SOL_SOCKET, option, _timeval(io_timeout_s))
        self._socket = sock

    def send(self, regions: Sequence[memoryview]) -> None:
        """Return when the bytes of all regions have left the memory they lie in; KvExchangeError when they do not."""
        _move(regions, lambda some: self._socket.sendmsg(some))

    def receive(self, regions: Sequence[memoryview]) -> None:
        """Fill all regions; KvExchangeError when that much does not come."""
        _move(regions, lambda some: self._socket.recvmsg_into(some, 0, socket.MSG_WAITALL)[0])

    def close(self) -> None:
        """End the connection; a thread that sends or receives fails at once."""
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)  # the descriptor is closed with the last user's reference


class Door:
    """Where the producer of one pair connects: it shows that it is the one by repeating a secret."""

    def __init__(self, host: str, config: KvConfig) -> None:
        """Listen on a free port of host, an address of this host; KvExchangeError when that cannot be."""
        self._config = config
        self.secret = secrets.token_hex(16)
        try:
            self._listener = socket.create_server((host, 0))
        except OSError as error:
            raise KvExchangeError(f"cannot listen for KV data on {host}: {error}") from error
        self.port = int(self._listener.getsockname()[1])

    def accept(self) -> SocketLink:
        """Wait for the producer and close the door; KvExchangeError when it does not come in time."""
        deadline = time.monotonic() + self._config.connect_timeout_s
        with self._listener:
            while (left_s := deadline - time.monotonic()) > 0:
                self._listener.settimeout(left_s)
                try:
                    sock, _ = self._listener.accept()
                except OSError as error:
                    raise KvExchangeError(f"the producer did not connect for its KV data: {error}") from error
                link = SocketLink(sock, min(left_s, self._config.io_timeout_s))
                said = bytearray(len(self.secret))
                with contextlib.suppress(KvExchangeError):
                    link.receive([memoryview(said)])
                    if hmac.compare_digest(bytes(said), self.secret.encode()):
                        return SocketLink(sock, self._config.io_timeout_s)
                sock.close()
        raise KvExchangeError(f"the producer did not connect within {self._config.connect_timeout_s:.1f} s")


def enter(host: str, port: int, secret: str, config: KvConfig) -> SocketLink:
    """Connect to the consumer's door; KvExchangeError when it is not there."""
    try:
        sock = socket.create_connection((host, port), timeout=config.connect_timeout_s)
    except OSError as error:
        raise KvExchangeError(f"cannot connect to {host}:{port} for KV data: {error}") from error
    link = SocketLink(sock, config.io_timeout_s)
    link.send([memoryview(secret.encode())])
    return link


def _timeval(seconds: float) -> bytes:
    """C's struct timeval; never zero, which would stand for no limit."""
    seconds = max(seconds, 1e-3)
    return struct.pack("@ll", int(seconds), int(seconds % 1.0 * 1e6))


def _move(regions: Sequence[memoryview], some: Callable[[list[memoryview]], int]) -> None:
    """Call some with what is left of the regions, a part of which it moves, until nothing is."""
    left, at = list(regions), 0
    while at < len(left):
        try:
            moved = some(left[at : at + _AT_ONCE])
        except BlockingIOError as error:
            raise KvExchangeError("KV data did not move in time") from error
        except OSError as error:
            raise KvExchangeError(f"KV data did not move: {error}") from error
        if moved == 0:
            raise KvExchangeError("KV data did not move: the peer has closed the connection")
        while at < len(left) and moved >= left[at].nbytes:
            moved -= left[at].nbytes
            at += 1
        if moved:
            left[at] = left[at][moved:]
