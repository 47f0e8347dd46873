"""The producer's end of a pair: sends blocks as they are computed, in large messages."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch

from engine.kv import link as links
from engine.kv.buffers import ANNOUNCED, message_blocks
from engine.kv.config import PROTOCOL_VERSION, Identity, KvConfig, KvExchangeError, TransferKey
from engine.kv.control import dial
from engine.kv.layout import KvLayout, Piece
from engine.kv.pair import Pair
from engine.kv.sending import BufferedSender, InPlaceSender, Sender
from engine.kv.socket_link import SocketLink, enter
from engine.kv.transfers import DeviceEvent, OutgoingTransfer


class OutboundPair(Pair):
    """Connects to a consumer in the background and sends what its transfers have computed.

    on_end(transfer) is called, from any thread, for each transfer that ends here, complete or not.
    """

    def __init__(
        self,
        address: str,
        identity: Identity,
        layout: KvLayout,
        config: KvConfig,
        on_end: Callable[[OutgoingTransfer], None],
        on_death: Callable[[Pair, str], None],
    ) -> None:
        """Start to connect at once."""
        super().__init__(address, config, on_death)
        self._identity = identity
        self._layout = layout
        self._on_end = on_end
        self._transfers: dict[TransferKey, OutgoingTransfer] = {}
        self._wake = threading.Condition()
        self._announced: deque[tuple[OutgoingTransfer, Piece, DeviceEvent | None]] = deque()
        self._message_blocks = 0
        self.bytes_sent = 0
        self.start("send", self._run)

    def add(self, transfer: OutgoingTransfer) -> None:
        """Offer a transfer to the consumer, now or as soon as the pair is connected."""
        with self._wake:
            self._transfers[transfer.key] = transfer
            connected = self._control is not None
        if connected:
            self.tell({"type": "offer", "key": transfer.key.to_wire()})
        if self.dead:
            self._end(transfer, f"pair with {self.peer} ended: {self.death_reason}")

    def wake(self) -> None:
        """Something was computed or has become ready."""
        with self._wake:
            self._wake.notify()

    def abort(self, key: TransferKey, reason: str) -> None:
        """Stop a transfer and tell the consumer."""
        transfer = self._transfers.get(key)
        if transfer is not None:
            self.tell({"type": "abort", "key": key.to_wire(), "reason": reason})
            self._end(transfer, reason)

    def transfers(self) -> list[OutgoingTransfer]:
        """Transfers that have not ended."""
        with self._wake:
            return list(self._transfers.values())

    def _end(self, transfer: OutgoingTransfer, reason: str) -> None:
        with self._wake:
            self._transfers.pop(transfer.key, None)
        if transfer.end(reason):
            self._on_end(transfer)

    def _connect(self) -> None:
        control = dial(self.peer, self.config.connect_timeout_s, self.config.io_timeout_s)
        backend = links.resolve_backend(self.config, self._layout)
        hello = {
            "type": "hello",
            "protocol": PROTOCOL_VERSION,
            "worker": self._identity.worker,
            "model": self._identity.model,
            "tp_rank": self._identity.tp_rank,
            "tp_size": self._identity.tp_size,
            "layout": self._layout.fingerprint(),
            "backend": backend,
        }
        try:
            control.send(hello)
            reply = control.receive(self.config.connect_timeout_s)
            if reply is None:
                raise KvExchangeError(f"the KV endpoint {self.peer} did not answer the hello")
            if reply.get("type") != "welcome":
                raise KvExchangeError(f"the KV endpoint {self.peer} refused: {reply.get('reason', reply)}")
            # The consumer's buffers may be smaller than ours.
            config = replace(self.config, message_bytes=min(self.config.message_bytes, int(reply["message_bytes"])))
            self._message_blocks = message_blocks(self._layout, config)
            if backend == "tcp":
                self._link = enter(control.peer_host, int(reply["port"]), str(reply["secret"]), self.config)
            else:
                store = links.join_store(control.peer_host, int(reply["port"]), self.config.connect_timeout_s)
                self._link = links.make_link(store, links.PRODUCER, backend, control.local_host, self.config)
        except BaseException:
            control.close()
            raise
        self._backend = backend
        with self._wake:
            self._control = control
            waiting = list(self._transfers.values())
        for transfer in waiting:
            self.tell({"type": "offer", "key": transfer.key.to_wire()})

    def _run(self) -> None:
        self._connect()
        if self.dead:
            self._drop()
            return
        self.start("read", lambda: self.read(self._handle))
        if self._layout.device.type == "cuda":
            torch.cuda.set_device(self._layout.device)
        sender = self._sender()
        while not self.dead:
            self._announce()
            transfer = self._complete()
            if transfer is not None:
                # Told before the last bytes have arrived: the consumer takes both in order, and waits for nothing else.
                self._tell_done(transfer)
                sender.flush()
                self._end(transfer, "")
            elif self._announced:
                transfer, piece, event = self._announced.popleft()
                sender.send(transfer, piece, event)
                self.bytes_sent += self._layout.nbytes(piece)
            else:
                self._wait()

    def _sender(self) -> Sender:
        if isinstance(self._link, SocketLink):
            return InPlaceSender(self._link, self._layout, self.config)
        assert self._link is not None
        return BufferedSender(self._link, self._layout, self.config, self._backend)

    def _tell_done(self, transfer: OutgoingTransfer) -> None:
        """Tell the consumer that it has what it wants; not of a transfer that has ended meanwhile."""
        with transfer.lock:
            if transfer.ended:
                return
            transfer.told_done = True
        crc = transfer.crc if self.config.checksum else None
        self.tell({"type": "done", "key": transfer.key.to_wire(), "crc": crc})

    def _announce(self) -> None:
        """Tell the consumer the next pieces ahead of their bytes, so that it is ready to receive when they come."""
        if len(self._announced) > ANNOUNCED // 2:
            return
        for transfer in self.transfers():
            pieces = []
            while len(self._announced) < ANNOUNCED:
                with transfer.lock:
                    found = transfer.next_piece(self._message_blocks)
                if found is None:
                    break
                piece, event = found
                pieces.append([piece.layer_start, piece.layer_end, piece.block_start, piece.block_end])
                self._announced.append((transfer, piece, event))
            if pieces:
                self.tell({"type": "pieces", "key": transfer.key.to_wire(), "pieces": pieces})

    def _complete(self) -> OutgoingTransfer | None:
        """Return a transfer of which everything has been handed to the link."""
        announced = {transfer.key for transfer, _, _ in self._announced}
        for transfer in self.transfers():
            with transfer.lock:
                if transfer.key not in announced and not transfer.ended and transfer.complete():
                    return transfer
        return None

    def _wait(self) -> None:
        """Wait until there is something to do, for a heartbeat at most."""
        with self._wake:
            for transfer in self._transfers.values():
                with transfer.lock:
                    if transfer.has_work(self._message_blocks):
                        return
            self._wake.wait(self.config.heartbeat_s)

    def _handle(self, message: dict[str, Any]) -> None:
        kind = message.get("type")
        if kind == "beat":
            for wire in message.get("transfers", []):
                transfer = self._transfers.get(TransferKey.from_wire(wire))
                if transfer is not None:
                    transfer.renew()
            return
        transfer = self._transfers.get(TransferKey.from_wire(message.get("key")))
        if transfer is None:
            return
        if kind == "ready":
            transfer.ready(int(message["first_block"]))
            transfer.renew()
            self.wake()
        elif kind == "abort" and transfer.told_done:
            self._end(transfer, "")  # it has everything, and so needs nothing more
        elif kind == "abort":
            self._end(transfer, f"decode worker: {message.get('reason', 'aborted')}")
        else:
            raise KvExchangeError(f"unknown control message {kind!r} from a consumer")
