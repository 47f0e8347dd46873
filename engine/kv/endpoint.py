"""What an engine uses to hand KV over: one endpoint per process that holds KV caches.

Producer:  offer -> computed (per layer and chunk) -> poll says sent, or ended with a reason; its blocks are then free.
Consumer:  expect -> poll says received, or failed with a reason; the engine then recomputes.
Nothing here blocks the caller longer than the copy of one message, and nothing waits for ever: each transfer ends by
completion, by abort on either side, by the death of its pair, or by its lease.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Sequence
from typing import Any

import torch

from engine.kv.config import Identity, KvConfig, KvExchangeError, TransferKey
from engine.kv.control import ControlSocket
from engine.kv.inbound import InboundPair
from engine.kv.layout import KvLayout
from engine.kv.listener import Listener
from engine.kv.outbound import OutboundPair
from engine.kv.pair import Pair
from engine.kv.reports import Ended, KvStats
from engine.kv.transfers import DeviceEvent, IncomingTransfer, OutgoingTransfer

log = logging.getLogger(__name__)


class KvEndpoint:
    """Both roles of one engine process: it can produce for some peers and consume from others at once."""

    def __init__(
        self, caches: Sequence[torch.Tensor], num_blocks: int, identity: Identity, config: KvConfig | None = None
    ) -> None:
        """Listen at once; KvExchangeError when the address is taken."""
        self.config = config or KvConfig()
        self.layout = KvLayout(caches, num_blocks)
        self._identity = identity
        self._lock = threading.Lock()
        self._something_ended = threading.Condition(self._lock)
        self._outbound: dict[str, OutboundPair] = {}
        self._inbound: list[InboundPair] = []
        self._dying: list[Pair] = []
        self._outgoing: dict[TransferKey, OutboundPair] = {}
        self._sends: dict[TransferKey, OutgoingTransfer] = {}
        self._incoming: dict[TransferKey, IncomingTransfer] = {}
        self._newest: dict[str, int] = {}
        self._refused: dict[str, str] = {}
        self._ended = Ended()
        self._bytes_of_dead_pairs = [0, 0]
        self._closed = threading.Event()
        self._listener = Listener(self.config, self._admit)
        self.address = self._listener.address
        self._watcher = threading.Thread(target=self._watch, name="kv-watch", daemon=True)
        self._listener.start()
        self._watcher.start()

    # producer

    def offer(self, key: TransferKey, address: str, lease_s: float | None = None) -> None:
        """Announce a transfer to the consumer at address; a higher generation ends the lower ones."""
        # In host memory the cores that compute also copy and send: small messages would cost them more than they hide.
        on_host = self.layout.device.type == "cpu"
        transfer = OutgoingTransfer(key, self.layout.layers, lease_s or self.config.lease_s, hold_back=on_host)
        with self._lock:
            older = [k for k in self._sends if k.transfer_id == key.transfer_id and k.generation < key.generation]
            duplicate = key in self._sends
            if not duplicate:
                self._sends[key] = transfer
        if duplicate:
            raise KvExchangeError(f"transfer {key} is offered already")
        for old in older:
            self.abort_sending(old, "a newer attempt replaced it")
        pair = self._pair(address)
        with self._lock:
            self._outgoing[key] = pair
        pair.add(transfer)

    def grow(self, key: TransferKey, block_ids: Sequence[int], total_blocks: int | None = None) -> None:
        """Tell the request's block ids as they are now, and how many will be handed over once that is known."""
        transfer = self._sends.get(key)
        if transfer is not None:
            transfer.grow(block_ids, total_blocks)
            self._wake(key)

    def computed(self, key: TransferKey, layer: int, blocks: int, event: DeviceEvent | None = None) -> None:
        """Blocks [0, blocks) of a layer hold their final values once event has passed; they may leave."""
        transfer = self._sends.get(key)
        if transfer is not None:
            transfer.computed(layer, blocks, event)
            self._wake(key)

    def abort_sending(self, key: TransferKey, reason: str) -> None:
        """End a transfer; when this returns its blocks may be reused: nothing that is still read of them is used."""
        with self._lock:
            pair = self._outgoing.get(key)
            transfer = self._sends.get(key)
        if pair is not None:
            pair.abort(key, reason)
        if transfer is not None and transfer.end(reason):
            self._sent(transfer)

    # consumer

    def expect(
        self, key: TransferKey, block_ids: Sequence[int], first_block: int, lease_s: float | None = None, peer: str = ""
    ) -> None:
        """Wait for blocks [first_block, len(block_ids)) of a request, from the worker of that name.

        KvExchangeError for an outdated generation, and for a peer that was refused when it last connected.
        """
        if not 0 <= first_block < len(block_ids):
            raise KvExchangeError(f"transfer {key} asks for no block: first {first_block} of {len(block_ids)}")
        lease_s = lease_s or self.config.lease_s
        transfer = IncomingTransfer(key, block_ids, first_block, self.layout.layers, lease_s, peer)
        with self._lock:
            if peer in self._refused:
                raise KvExchangeError(f"{peer} was refused: {self._refused[peer]}")
            if key.generation <= self._newest.get(key.transfer_id, -1):
                raise KvExchangeError(f"transfer {key} is older than one that was expected before")
            older = [k for k in self._incoming if k.transfer_id == key.transfer_id]
            self._newest[key.transfer_id] = key.generation
            while len(self._newest) > 4096:
                self._newest.pop(next(iter(self._newest)))
            self._incoming[key] = transfer
            pairs = list(self._inbound)
        for old in older:
            self.abort_receiving(old, "a newer attempt replaced it")
        for pair in pairs:
            if pair.offers(key):
                pair.ready(transfer)

    def abort_receiving(self, key: TransferKey, reason: str) -> None:
        """End a transfer; its blocks may be reused once poll has reported it, for a piece may be on its way to them."""
        transfer = self._incoming.get(key)
        if transfer is None:
            return
        with self._lock:
            pairs = [pair for pair in self._inbound if pair.offers(key)]
        for pair in pairs:
            pair.abort(key, reason)
        self._received(transfer, reason)

    def decline(self, key: TransferKey, reason: str) -> None:
        """Let the producer of a transfer drop it: nothing of it is needed here."""
        with self._lock:
            self._newest[key.transfer_id] = max(key.generation, self._newest.get(key.transfer_id, -1))
            pairs = [pair for pair in self._inbound if pair.offers(key)]
        for pair in pairs:
            pair.abort(key, reason)

    # both

    def poll(self, wait_s: float = 0.0) -> Ended:
        """Return what ended since the last call; wait_s: how long to wait for something where nothing has."""
        with self._lock:
            if wait_s > 0:
                self._something_ended.wait_for(lambda: self._ended != Ended(), wait_s)
            ended, self._ended = self._ended, Ended()
        return ended

    def stats(self) -> KvStats:
        """Count what is under way and what has moved."""
        with self._lock:
            return KvStats(
                outgoing=len(self._sends),
                incoming=len(self._incoming),
                pairs=len(self._outbound) + len(self._inbound),
                bytes_sent=self._bytes_of_dead_pairs[0] + sum(p.bytes_sent for p in self._outbound.values()),
                bytes_received=self._bytes_of_dead_pairs[1] + sum(p.bytes_received for p in self._inbound),
            )

    def close(self) -> None:
        """End every transfer and pair; safe to call twice."""
        self._closed.set()
        self._listener.close()
        with self._lock:
            pairs: list[Pair] = [*self._outbound.values(), *self._inbound]
        for pair in pairs:
            pair.die("the endpoint was closed")
        with self._lock:
            pairs += self._dying
        for pair in pairs:
            pair.join(self.config.io_timeout_s + 1.0)
        self._watcher.join(self.config.io_timeout_s + 1.0)

    def _pair(self, address: str) -> OutboundPair:
        with self._lock:
            pair = self._outbound.get(address)
            if pair is None or pair.dead:
                pair = OutboundPair(address, self._identity, self.layout, self.config, self._sent, self._pair_died)
                self._outbound[address] = pair
            return pair

    def _wake(self, key: TransferKey) -> None:
        pair = self._outgoing.get(key)
        if pair is not None:
            pair.wake()

    def _find_incoming(self, key: TransferKey) -> IncomingTransfer | None:
        return self._incoming.get(key)

    def _sent(self, transfer: OutgoingTransfer) -> None:
        with self._lock:
            self._sends.pop(transfer.key, None)
            self._outgoing.pop(transfer.key, None)
            if transfer.reason:
                self._ended.send_failed[transfer.key] = transfer.reason
            else:
                self._ended.sent.append(transfer.key)
            self._something_ended.notify_all()

    def _received(self, transfer: IncomingTransfer, reason: str) -> None:
        transfer.end(reason)
        if not transfer.settle():
            return
        with self._lock:
            self._incoming.pop(transfer.key, None)
            if transfer.reason:
                self._ended.receive_failed[transfer.key] = transfer.reason
            else:
                self._ended.received.append(transfer.key)
            self._something_ended.notify_all()

    def _offered(self, pair: InboundPair, key: TransferKey) -> None:
        transfer = self._incoming.get(key)
        if transfer is not None and not transfer.ended:
            transfer.renew()
            pair.ready(transfer)
        elif key.generation <= self._newest.get(key.transfer_id, -1):
            pair.abort(key, "the decode worker does not need it any more")

    def _pair_died(self, pair: Pair, reason: str) -> None:
        if not self._closed.is_set():
            log.warning("KV pair with %s ended: %s", pair.peer, reason)
        with self._lock:
            self._dying = [other for other in self._dying if other.alive] + [pair]
            if isinstance(pair, OutboundPair):
                if self._outbound.get(pair.peer) is pair:
                    del self._outbound[pair.peer]
                self._bytes_of_dead_pairs[0] += pair.bytes_sent
            elif isinstance(pair, InboundPair) and pair in self._inbound:
                self._inbound.remove(pair)
                self._bytes_of_dead_pairs[1] += pair.bytes_received
        why = f"pair with {pair.peer} ended: {reason}"
        if isinstance(pair, OutboundPair):
            for transfer in pair.transfers():
                if transfer.end(why):
                    self._sent(transfer)
        elif isinstance(pair, InboundPair):
            for key in pair.offered():
                incoming = self._incoming.get(key)
                if incoming is not None:
                    self._received(incoming, why)

    def _admit(self, control: ControlSocket, hello: dict[str, Any]) -> None:
        worker = str(hello.get("worker", control.peer_host))
        try:
            pair = InboundPair(
                control,
                hello,
                self._identity,
                self.layout,
                self.config,
                self._find_incoming,
                self._offered,
                self._received,
                self._pair_died,
            )
        except KvExchangeError as error:
            self._refuse(worker, str(error))
            raise
        with self._lock:
            self._refused.pop(worker, None)
            if not pair.dead:
                self._inbound.append(pair)

    def _refuse(self, worker: str, reason: str) -> None:
        """End what is expected of a producer that does not fit: its lease would only delay the recompute."""
        with self._lock:
            self._refused[worker] = reason
            while len(self._refused) > 256:
                self._refused.pop(next(iter(self._refused)))
            expected = [transfer for transfer in self._incoming.values() if transfer.peer == worker]
        for transfer in expected:
            self._received(transfer, f"{worker} was refused: {reason}")

    def _watch(self) -> None:
        """Heartbeats, silent peers, leases."""
        while not self._closed.wait(self.config.heartbeat_s):
            try:
                self._look_after()
            except Exception:  # a defect in one transfer must not end the leases and heartbeats of all others
                log.exception("the KV exchange failed to look after its transfers")

    def _look_after(self) -> None:
        with self._lock:
            outbound, inbound = list(self._outbound.values()), list(self._inbound)
            sends, incoming = list(self._sends.values()), list(self._incoming.values())
        for sender in outbound:
            sender.beat([transfer.key for transfer in sender.transfers()])
            sender.check()
        expected = {transfer.key for transfer in incoming}
        for receiver in inbound:
            receiver.beat([key for key in receiver.offered() if key in expected])
            receiver.check()
        for transfer in sends:
            if transfer.expired():
                self.abort_sending(transfer.key, f"no word of it from the decode worker for {transfer.lease_s} s")
        for waiting in incoming:
            if waiting.expired():
                self.abort_receiving(waiting.key, f"no word of it from the prefill worker for {waiting.lease_s} s")
