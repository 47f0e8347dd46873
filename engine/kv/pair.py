"""What both ends of a pair share: the control socket, heartbeats, and its death, noticed once and told to all."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from typing import Any

from engine.kv.config import KvConfig, KvExchangeError, TransferKey
from engine.kv.control import ControlSocket
from engine.kv.link import TorchLink
from engine.kv.socket_link import SocketLink

log = logging.getLogger(__name__)


class Pair:
    """One end of a connection between a producer and a consumer.

    on_death(pair, reason) is called once, from any thread, when the peer is gone, silent or sends nonsense; the pair
    is of no use afterwards and its link and buffers are dropped with it.
    """

    def __init__(self, peer: str, config: KvConfig, on_death: Callable[[Pair, str], None]) -> None:
        """Peer names the other end in logs."""
        self.peer = peer
        self.config = config
        self._on_death = on_death
        self._control: ControlSocket | None = None
        self._link: TorchLink | SocketLink | None = None
        self._dead = threading.Event()
        self._death_lock = threading.Lock()
        self.death_reason = ""
        self._heard_s = time.monotonic()
        self._threads: list[threading.Thread] = []

    @property
    def dead(self) -> bool:
        """The pair can move nothing any more."""
        return self._dead.is_set()

    def start(self, name: str, target: Callable[[], None]) -> None:
        """Run target in a thread; an error in it is the death of the pair."""

        def guarded() -> None:
            try:
                target()
            except KvExchangeError as error:
                self.die(str(error))
            except Exception as error:  # a bug here must cost a recompute, never a hanging request
                log.exception("KV pair with %s failed", self.peer)
                self.die(f"internal error: {error}")

        thread = threading.Thread(target=guarded, name=f"kv-{name}-{self.peer}", daemon=True)
        self._threads.append(thread)
        thread.start()

    def die(self, reason: str) -> None:
        """End the pair; the first reason counts."""
        with self._death_lock:
            if self._dead.is_set():
                return
            self.death_reason = reason
            self._dead.set()
        self._drop()
        self._on_death(self, reason)

    def _drop(self) -> None:
        if self._control is not None:
            self._control.close()
        if self._link is not None:
            self._link.close()

    @property
    def alive(self) -> bool:
        """Whether a thread of the pair still runs: for a moment after its death."""
        return any(thread.is_alive() for thread in self._threads)

    def join(self, timeout_s: float) -> None:
        """Wait for the pair's threads, in all at most timeout_s."""
        deadline = time.monotonic() + timeout_s
        for thread in self._threads:
            if thread is not threading.current_thread():
                thread.join(max(0.0, deadline - time.monotonic()))

    def tell(self, message: dict[str, Any]) -> None:
        """Send a control message; the pair dies when that fails."""
        control = self._control
        if control is None or self.dead:
            return
        try:
            control.send(message)
        except KvExchangeError as error:
            self.die(str(error))

    def beat(self, keys: list[TransferKey]) -> None:
        """Tell the peer that this end lives and which transfers it holds; nothing before the handshake is over."""
        if self._link is not None:
            self.tell({"type": "beat", "transfers": [key.to_wire() for key in keys]})

    def check(self) -> None:
        """Die when the peer has been silent for longer than io_timeout_s."""
        silent_s = time.monotonic() - self._heard_s
        if self._control is not None and not self.dead and silent_s > self.config.io_timeout_s:
            self.die(f"peer has been silent for {silent_s:.1f} s")

    def read(self, handle: Callable[[dict[str, Any]], None]) -> None:
        """Handle control messages until the pair dies."""
        control = self._control
        assert control is not None
        while not self.dead:
            message = control.receive(self.config.heartbeat_s)
            if message is not None:
                self._heard_s = time.monotonic()
                handle(message)
