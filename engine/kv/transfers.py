"""The state of one hand-over, at its producer and at its consumer.

Each state has a lock that is held while blocks are copied. Ending a transfer takes the same lock, so once end() has
returned no thread copies from or to its blocks any more.

Where blocks are sent and received without a copy (the backend tcp), the lock is not held while a piece moves. So a
consumer's transfer that has ended is settled, and reported, only when nothing is being received into its blocks any
more: then they may be freed and reused (the fence). A producer says that a transfer is done only when all its bytes
have left the caches. Of one that ended before, a piece that was leaving may carry what the blocks hold by then; the
consumer never uses it.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from engine.kv.config import TransferKey
from engine.kv.layout import Piece


class DeviceEvent(Protocol):
    """A point in a device's stream (torch.cuda.Event); None stands for host memory, which needs no waiting."""

    def synchronize(self) -> None:
        """Wait until the device has passed the point."""
        ...


@dataclass(frozen=True, slots=True)
class Computed:
    """Blocks [0, blocks) of a layer hold their final values once event has passed."""

    blocks: int
    event: DeviceEvent | None


class _Ending:
    """Lease, end and reason, common to both ends."""

    def __init__(self, key: TransferKey, lease_s: float) -> None:
        self.key = key
        self.lock = threading.Lock()
        self.lease_s = lease_s
        self.ended = False
        self.reason = ""
        self.crc = 0
        """CRC-32 of what was gathered or scattered so far, where checksums are on."""
        self._renewed_s = time.monotonic()

    def renew(self) -> None:
        """Count the lease from now."""
        self._renewed_s = time.monotonic()

    def expired(self) -> bool:
        """The lease ran out without a heartbeat for this transfer."""
        return not self.ended and time.monotonic() - self._renewed_s > self.lease_s

    def end(self, reason: str) -> bool:
        """Fence the transfer off; empty reason: it is complete. False when it had ended before."""
        with self.lock:
            if self.ended:
                return False
            self.ended, self.reason = True, reason
            return True


class OutgoingTransfer(_Ending):
    """What the producer knows: how far each layer is computed and sent, in blocks of the request."""

    def __init__(self, key: TransferKey, layers: int, lease_s: float, hold_back: bool = False) -> None:
        """Start with nothing computed; the block ids come with the first chunk.

        hold_back: wait with a message for the next layer while it could hold that too.
        """
        super().__init__(key, lease_s)
        self._hold_back = hold_back
        self.block_ids: list[int] = []
        self.total_blocks: int | None = None
        """Known once the last chunk is scheduled."""
        self.ready_from: int | None = None
        """First block that the consumer wants; None until it has said so."""
        self.told_done = False
        """All bytes have left the caches, and the consumer is told so."""
        self._computed = [Computed(0, None)] * layers
        self._sent = [0] * layers

    def grow(self, block_ids: Sequence[int], total_blocks: int | None) -> None:
        """Take over the request's block ids as they are now; total_blocks once no more will come."""
        with self.lock:
            self.block_ids = list(block_ids)
            if total_blocks is not None:
                self.total_blocks = total_blocks

    def computed(self, layer: int, blocks: int, event: DeviceEvent | None) -> None:
        """Blocks [0, blocks) of a layer are final."""
        with self.lock:
            if blocks > self._computed[layer].blocks:
                self._computed[layer] = Computed(blocks, event)

    def ready(self, first_block: int) -> None:
        """The consumer has memory for the blocks from first_block on."""
        with self.lock:
            if self.ready_from is not None:
                return
            self.ready_from = first_block
            self._sent = [max(sent, first_block) for sent in self._sent]

    def next_piece(self, max_blocks: int) -> tuple[Piece, DeviceEvent | None] | None:
        """Return what to send next, at most max_blocks layer-blocks, or None; call with the lock held.

        The layer that is furthest behind goes first; neighbours at the same point join the message.
        """
        piece = self._next(max_blocks)
        if piece is None:
            return None
        for layer in range(piece.layer_start, piece.layer_end):
            self._sent[layer] = piece.block_end
        return piece, self._computed[piece.layer_end - 1].event

    def has_work(self, max_blocks: int) -> bool:
        """There is a piece to send, or the end to announce; call with the lock held."""
        return not self.ended and (self.complete() or self._next(max_blocks) is not None)

    def _next(self, max_blocks: int) -> Piece | None:
        if self.ended or self.ready_from is None:
            return None
        layers = len(self._sent)
        behind = [layer for layer in range(layers) if self._sent[layer] < self._computed[layer].blocks]
        if not behind:
            return None
        start = min(behind, key=lambda layer: (self._sent[layer], layer))
        first = self._sent[start]
        last = min(self._computed[start].blocks, first + max_blocks)
        end = start + 1
        while end < layers and self._sent[end] == first and (end + 1 - start) * (last - first) <= max_blocks:
            computed = self._computed[end].blocks
            if computed < last:
                if not self._hold_back:
                    break
                if computed <= first:
                    return None
                last = computed
            end += 1
        return Piece(start, end, first, last)

    def complete(self) -> bool:
        """Everything that the consumer wants has been handed to the link; call with the lock held."""
        return (
            self.total_blocks is not None
            and self.ready_from is not None
            and all(sent >= max(self.total_blocks, self.ready_from) for sent in self._sent)
        )


class IncomingTransfer(_Ending):
    """What the consumer knows: where blocks go and how many layer-blocks are still missing."""

    def __init__(
        self, key: TransferKey, block_ids: Sequence[int], first_block: int, layers: int, lease_s: float, peer: str = ""
    ) -> None:
        """block_ids are the request's blocks from its first on; those before first_block are here already.

        peer: name of the producer.
        """
        super().__init__(key, lease_s)
        self.peer = peer
        self.block_ids = list(block_ids)
        self.first_block = first_block
        self._layers = layers
        self.missing = layers * (len(block_ids) - first_block)
        self.ready_sent = False
        self.landing = False
        """A piece is being received into the blocks."""
        self._settled = False

    def fits(self, piece: Piece) -> bool:
        """The piece lies inside the blocks that were asked for."""
        return (
            0 <= piece.layer_start < piece.layer_end <= self._layers
            and self.first_block <= piece.block_start < piece.block_end <= len(self.block_ids)
        )

    def stored(self, piece: Piece) -> None:
        """A piece is where it belongs; call with the lock held."""
        self.missing -= piece.layers * piece.blocks
        self.renew()

    def settle(self) -> bool:
        """Return True, once, when the transfer has ended and nothing is written to its blocks any more."""
        with self.lock:
            settles = self.ended and not self.landing and not self._settled
            self._settled = self._settled or settles
            return settles
