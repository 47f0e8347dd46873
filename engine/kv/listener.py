"""Where producers call: accepts connections and hears who is there."""

from __future__ import annotations

import contextlib
import logging
import socket
import threading
from collections.abc import Callable
from typing import Any

from engine.kv.config import KvConfig, KvExchangeError
from engine.kv.control import ControlSocket

log = logging.getLogger(__name__)


class Listener:
    """Listens for producers, each of which is heard in a thread of its own."""

    def __init__(self, config: KvConfig, admit: Callable[[ControlSocket, dict[str, Any]], None]) -> None:
        """Listen; KvExchangeError when the address is taken.

        admit(control, hello) takes a producer over, or raises.
        """
        self._config = config
        self._admit = admit
        self._closed = threading.Event()
        try:
            self._socket = socket.create_server((config.host, config.port), backlog=64)
        except OSError as error:
            raise KvExchangeError(
                f"cannot listen for KV on {config.host}:{config.port}: {error}; choose another KV port"
            ) from error
        host, port = self._socket.getsockname()[:2]
        self.address = f"{host}:{port}"
        self._thread = threading.Thread(target=self._accept, name="kv-accept", daemon=True)

    def start(self) -> None:
        """Begin to accept."""
        self._thread.start()

    def close(self) -> None:
        """Accept nobody any more; safe to call twice."""
        self._closed.set()
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)  # close alone does not wake who waits in accept
        self._socket.close()
        self._thread.join(self._config.io_timeout_s)

    def _accept(self) -> None:
        while not self._closed.is_set():
            try:
                connection, _ = self._socket.accept()
            except OSError as error:
                # Out of file descriptors, or a caller that has gone again: others will come.
                if not self._closed.wait(self._config.heartbeat_s):
                    log.warning("a KV connection was not taken: %s", error)
                continue
            threading.Thread(target=self._greet, args=(connection,), name="kv-greet", daemon=True).start()

    def _greet(self, connection: socket.socket) -> None:
        try:
            control = ControlSocket(connection, self._config.io_timeout_s)
            hello = control.receive(self._config.connect_timeout_s)
            if hello is None or hello.get("type") != "hello":
                raise KvExchangeError("peer did not say hello")
            self._admit(control, hello)
        except Exception as error:  # whatever it is, the caller must not be left waiting
            log.warning("KV connection refused: %s", error)
            with contextlib.suppress(OSError):
                connection.close()
