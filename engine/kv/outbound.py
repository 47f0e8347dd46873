"""The producer's end of a pair: gathers blocks as they are computed and sends them in large messages."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import torch

from engine.kv import link as links
from engine.kv.config import PROTOCOL_VERSION, Identity, KvConfig, KvExchangeError, TransferKey
from engine.kv.control import dial
from engine.kv.layout import KvLayout, checksum
from engine.kv.pair import Pair
from engine.kv.transfers import OutgoingTransfer


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
            self._end(transfer, "the pair with the decode worker is gone")

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
        backend = links.resolve_backend(self.config, self._layout.device)
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
        link = self._link
        assert link is not None
        if self._layout.device.type == "cuda":
            torch.cuda.set_device(self._layout.device)
        device = self._layout.device if self._backend == "nccl" else torch.device("cpu")
        elements = max(1, self.config.message_bytes // self._layout.block_bytes) * self._layout.block_elements
        pinned = device.type == "cpu" and self._layout.device.type == "cuda"
        buffers = [torch.empty(elements, dtype=self._layout.dtype, device=device, pin_memory=pinned) for _ in range(2)]
        sends: list[links.Transfer | None] = [None, None]
        turn = 0
        while not self.dead:
            transfer = self._next(timeout_s=self.config.heartbeat_s)
            if transfer is None:
                continue
            pending = sends[turn]
            if pending is not None:
                pending.wait()
                sends[turn] = None
            data = self._gather(transfer, buffers[turn])
            if data is not None:
                sends[turn] = link.send(data)
                self.bytes_sent += data.numel() * data.element_size()
                turn = 1 - turn
            with transfer.lock:
                complete = transfer.complete()
            if complete:
                for pending in sends:
                    if pending is not None:
                        pending.wait()
                sends = [None, None]
                self.tell({"type": "done", "key": transfer.key.to_wire()})
                self._end(transfer, "")

    def _next(self, timeout_s: float) -> OutgoingTransfer | None:
        with self._wake:
            for _ in range(2):
                for transfer in self._transfers.values():
                    if transfer.ended:
                        continue
                    with transfer.lock:
                        if transfer.has_work():
                            return transfer
                self._wake.wait(timeout_s)
        return None

    def _gather(self, transfer: OutgoingTransfer, buffer: torch.Tensor) -> torch.Tensor | None:
        """Announce the next piece and return its bytes; None when there is none."""
        with transfer.lock:
            found = transfer.next_piece(max(1, buffer.numel() // self._layout.block_elements))
            if found is None:
                return None
            piece, event = found
            if event is not None:
                event.synchronize()
            data = self._layout.gather(piece, transfer.block_ids, buffer)
            if self._layout.device.type == "cuda":
                torch.cuda.current_stream(self._layout.device).synchronize()
        message: dict[str, Any] = {
            "type": "piece",
            "key": transfer.key.to_wire(),
            "piece": [piece.layer_start, piece.layer_end, piece.block_start, piece.block_end],
        }
        if self.config.checksum:
            message["crc"] = checksum(data)
        self.tell(message)
        return data

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
        elif kind == "abort":
            self._end(transfer, f"decode worker: {message.get('reason', 'aborted')}")
        else:
            raise KvExchangeError(f"unknown control message {kind!r} from a consumer")
