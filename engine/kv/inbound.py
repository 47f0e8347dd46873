"""The consumer's end of a pair: receives messages and scatters them into the blocks that wait for them."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable
from typing import Any

import torch

from engine.kv import link as links
from engine.kv.config import Identity, KvConfig, KvExchangeError, TransferKey
from engine.kv.control import ControlSocket
from engine.kv.layout import KvLayout, Piece, checksum
from engine.kv.pair import Pair
from engine.kv.transfers import IncomingTransfer

_BUFFERS = 2


class InboundPair(Pair):
    """Serves one producer.

    find(key) returns the transfer that waits for this key, or None. on_offer(pair, key) is called when the producer
    offers a transfer; on_end(transfer) when one is complete or has failed here.
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
        device = layout.device if self._backend == "nccl" else torch.device("cpu")
        elements = max(1, config.message_bytes // layout.block_bytes) * layout.block_elements
        pinned = device.type == "cpu" and layout.device.type == "cuda"
        self._free: queue.Queue[torch.Tensor] = queue.Queue()
        for _ in range(_BUFFERS):
            self._free.put(torch.empty(elements, dtype=layout.dtype, device=device, pin_memory=pinned))
        self._elements = elements
        self._received: queue.Queue[tuple[links.Transfer, torch.Tensor, TransferKey, Piece, int | None] | TransferKey]
        self._received = queue.Queue(maxsize=64)
        self.start("receive", self._run)

    def _refusal(self, hello: dict[str, Any], identity: Identity) -> str:
        if reason := identity.mismatch(hello):
            return reason
        if hello.get("layout") != self._layout.fingerprint():
            return "the KV layouts differ (layers, block size, heads, dtype): start both workers with the same settings"
        try:
            own = links.resolve_backend(self.config, self._layout.device)
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
        store = links.open_store(control.local_host, self.config.connect_timeout_s)
        control.send({"type": "welcome", "port": store.port})
        self._link = links.make_link(store, links.CONSUMER, self._backend, control.local_host, self.config)
        self.start("scatter", self._scatter)
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
        elif kind == "piece":
            self._receive(key, message)
        elif kind == "done":
            self._received.put(key, timeout=self.config.io_timeout_s)
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
        if transfer is not None:
            transfer.renew()
            if not transfer.ready_sent:
                self.ready(transfer)

    def _receive(self, key: TransferKey, message: dict[str, Any]) -> None:
        piece = Piece(*(int(n) for n in message["piece"]))
        size = piece.layers * piece.blocks * self._layout.block_elements
        if not 0 < size <= self._elements:
            raise KvExchangeError(f"producer announced a message of {size} elements, more than {self._elements}")
        link = self._link
        assert link is not None
        buffer = self._take_buffer()
        # The bytes are on their way whether or not anybody still wants them; they must leave the link.
        self._received.put(
            (link.receive(buffer[:size]), buffer, key, piece, message.get("crc")), timeout=self.config.io_timeout_s
        )

    def _take_buffer(self) -> torch.Tensor:
        try:
            return self._free.get(timeout=2 * self.config.io_timeout_s)
        except queue.Empty:
            raise KvExchangeError("KV data arrives faster than it can be scattered") from None

    def _scatter(self) -> None:
        if self._layout.device.type == "cuda":
            torch.cuda.set_device(self._layout.device)
        while not self.dead:
            try:
                item = self._received.get(timeout=self.config.heartbeat_s)
            except queue.Empty:
                continue
            if isinstance(item, TransferKey):
                self._finish(item)
                continue
            moving, buffer, key, piece, crc = item
            moving.wait()
            self.bytes_received += self._layout.nbytes(piece)
            transfer = self._find(key)
            if transfer is not None:
                self._store(transfer, piece, buffer, crc)
            self._free.put(buffer)

    def _store(self, transfer: IncomingTransfer, piece: Piece, buffer: torch.Tensor, crc: int | None) -> None:
        if not transfer.fits(piece):
            self._on_end(transfer, f"prefill worker sent {piece}, which is outside of what was asked for")
            return
        if crc is not None:
            got = checksum(buffer[: piece.layers * piece.blocks * self._layout.block_elements])
            if got != crc:
                self._on_end(transfer, f"checksum of {piece} differs: sent {crc:#x}, received {got:#x}")
                return
        with transfer.lock:
            if transfer.ended:
                return
            self._layout.scatter(piece, transfer.block_ids, buffer)
            if self._layout.device.type == "cuda":
                torch.cuda.current_stream(self._layout.device).synchronize()
            transfer.missing -= piece.layers * piece.blocks
        transfer.renew()

    def _finish(self, key: TransferKey) -> None:
        with self._offered_lock:
            self._offered.discard(key)
        transfer = self._find(key)
        if transfer is not None:
            missing = transfer.missing
            self._on_end(transfer, f"{missing} layer-blocks are missing at the end" if missing else "")
