"""The consumer's end of a pair: receives messages and stores them in the blocks that wait for them."""

from __future__ import annotations

import queue
import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from engine.kv import link as links
from engine.kv.buffers import message_blocks
from engine.kv.config import Identity, KvConfig, KvExchangeError, TransferKey
from engine.kv.control import ControlSocket
from engine.kv.layout import KvLayout, Piece
from engine.kv.pair import Pair
from engine.kv.receiving import BufferedReceiver, InPlaceReceiver, Receiver
from engine.kv.socket_link import Door, SocketLink
from engine.kv.transfers import IncomingTransfer


@dataclass(frozen=True, slots=True)
class _Message:
    """A message that will come."""

    key: TransferKey
    piece: Piece


@dataclass(frozen=True, slots=True)
class _Done:
    """The producer has sent everything; crc: of all of it, None where the producer makes no checksums."""

    key: TransferKey
    crc: int | None


class InboundPair(Pair):
    """Serves one producer.

    find(key) returns the transfer that waits for this key, or None. on_offer(pair, key) is called when the producer
    offers a transfer; on_end(transfer, reason) when one is complete or has failed here, and again when nothing is
    received into the blocks of one that has ended any more.
    """

    def __init__(
        self,
        control: ControlSocket,
        hello: dict[str, Any],
        identity: Identity,
        layout: KvLayout,
        config: KvConfig,
        find: Callable[[TransferKey], IncomingTransfer | None],
        on_offer: Callable[[InboundPair, TransferKey], None],
        on_end: Callable[[IncomingTransfer, str], None],
        on_death: Callable[[Pair, str], None],
    ) -> None:
        """Refuse the producer with the reason, or start to serve it."""
        super().__init__(str(hello.get("worker", control.peer_host)), config, on_death)
        self._layout = layout
        self._find = find
        self._on_offer = on_offer
        self._on_end = on_end
        self._offered: set[TransferKey] = set()
        self._offered_lock = threading.Lock()
        self.bytes_received = 0
        refusal = self._refusal(hello, identity)
        if refusal:
            control.send({"type": "refused", "reason": refusal})
            raise KvExchangeError(refusal)
        self._backend = str(hello["backend"])
        self._control = control
        self._elements = message_blocks(layout, config) * layout.block_elements
        self._announced: queue.SimpleQueue[_Message | _Done] = queue.SimpleQueue()
        self.start("receive", self._run)

    def _refusal(self, hello: dict[str, Any], identity: Identity) -> str:
        if reason := identity.mismatch(hello):
            return reason
        if hello.get("layout") != self._layout.fingerprint():
            return "the KV layouts differ (layers, block size, heads, dtype): start both workers with the same settings"
        try:
            own = links.resolve_backend(self.config, self._layout)
        except KvExchangeError as error:
            return str(error)
        if hello.get("backend") != own:
            return f"peer moves KV by {hello.get('backend')!r}, this worker by {own!r}: set the same KV backend"
        return ""

    def ready(self, transfer: IncomingTransfer) -> None:
        """Tell the producer that memory for this transfer is here."""
        transfer.ready_sent = True
        self.tell({"type": "ready", "key": transfer.key.to_wire(), "first_block": transfer.first_block})

    def abort(self, key: TransferKey, reason: str) -> None:
        """Tell the producer to stop a transfer."""
        with self._offered_lock:
            self._offered.discard(key)
        self.tell({"type": "abort", "key": key.to_wire(), "reason": reason})

    def offers(self, key: TransferKey) -> bool:
        """The producer of this pair has offered the transfer."""
        with self._offered_lock:
            return key in self._offered

    def offered(self) -> list[TransferKey]:
        """Transfers that the producer has offered and that have not ended."""
        with self._offered_lock:
            return list(self._offered)

    def _run(self) -> None:
        control = self._control
        assert control is not None
        welcome = {"type": "welcome", "message_bytes": self.config.message_bytes}
        if self._backend == "tcp":
            door = Door(control.local_host, self.config)
            control.send({**welcome, "port": door.port, "secret": door.secret})
            self._link = door.accept()
        else:
            store = links.open_store(control.local_host, self.config.connect_timeout_s)
            control.send({**welcome, "port": store.port})
            self._link = links.make_link(store, links.CONSUMER, self._backend, control.local_host, self.config)
        self.start("store", self._store)
        if self._layout.device.type == "cuda":
            torch.cuda.set_device(self._layout.device)
        self.read(self._handle)

    def _handle(self, message: dict[str, Any]) -> None:
        kind = message.get("type")
        if kind == "beat":
            for wire in message.get("transfers", []):
                self._held(TransferKey.from_wire(wire))
            return
        key = TransferKey.from_wire(message.get("key"))
        if kind == "offer":
            with self._offered_lock:
                self._offered.add(key)
            self._on_offer(self, key)
        elif kind == "pieces":
            for numbers in message["pieces"]:
                self._announced.put(_Message(key, self._checked(Piece(*(int(n) for n in numbers)))))
        elif kind == "done":
            self._announced.put(_Done(key, message["crc"]))
        elif kind == "abort":
            with self._offered_lock:
                self._offered.discard(key)
            transfer = self._find(key)
            if transfer is not None:
                self._on_end(transfer, f"prefill worker: {message.get('reason', 'aborted')}")
        else:
            raise KvExchangeError(f"unknown control message {kind!r} from a producer")

    def _held(self, key: TransferKey) -> None:
        """The producer still holds a transfer; its offer may have crossed with the expectation here."""
        with self._offered_lock:
            self._offered.add(key)
        transfer = self._find(key)
        if transfer is None or transfer.ended or not transfer.ready_sent:
            # Also where the word that it is not wanted, or what follows from it, has crossed with this.
            self._on_offer(self, key)
        else:
            transfer.renew()

    def _checked(self, piece: Piece) -> Piece:
        size = self._layout.elements(piece)
        if not 0 < size <= self._elements:
            raise KvExchangeError(f"producer announced a message of {size} elements, more than {self._elements}")
        return piece

    def _receiver(self) -> Receiver:
        if isinstance(self._link, SocketLink):
            return InPlaceReceiver(self._link, self._layout, self.config)
        assert self._link is not None
        return BufferedReceiver(self._link, self._layout, self.config, self._backend)

    def _store(self) -> None:
        """Receive what was announced, several messages ahead, and store one after the other.

        The bytes are on their way whether or not anybody still wants them; they must leave the link.
        """
        if self._layout.device.type == "cuda":
            torch.cuda.set_device(self._layout.device)
        receiver = self._receiver()
        coming: deque[_Message | _Done] = deque()
        while not self.dead:
            try:
                while receiver.room:
                    item = self._announced.get(timeout=0 if coming else self.config.heartbeat_s)
                    if isinstance(item, _Message):
                        receiver.expect(item.piece)
                    coming.append(item)
            except queue.Empty:
                if not coming:
                    continue
            first = coming.popleft()
            if isinstance(first, _Done):
                self._finish(first)
            else:
                self._take(receiver, first)

    def _take(self, receiver: Receiver, message: _Message) -> None:
        piece, transfer = message.piece, self._find(message.key)
        if transfer is not None and not transfer.fits(piece):
            self._on_end(transfer, f"prefill worker sent {piece}, which is outside of what was asked for")
            transfer = None
        try:
            receiver.take(piece, transfer)
        finally:
            if transfer is not None and transfer.ended:
                self._on_end(transfer, transfer.reason)  # it is settled only now, when nothing is written to its blocks
        self.bytes_received += self._layout.nbytes(piece)

    def _finish(self, done: _Done) -> None:
        with self._offered_lock:
            self._offered.discard(done.key)
        transfer = self._find(done.key)
        if transfer is None:
            return
        if transfer.missing:
            self._on_end(transfer, f"{transfer.missing} layer-blocks are missing at the end")
        elif self.config.checksum and done.crc is not None and transfer.crc != done.crc:
            self._on_end(transfer, f"checksums differ: sent {done.crc:#x}, received {transfer.crc:#x}")
        else:
            self._on_end(transfer, "")
