"""How pieces get from the link to the blocks that wait for them: through buffers, or straight into them."""

from __future__ import annotations

from collections import deque
from typing import Protocol

import torch

from engine.kv.buffers import RECEIVING, message_blocks, message_buffers
from engine.kv.config import KvConfig
from engine.kv.layout import KvLayout, Piece, checksum, region_checksum
from engine.kv.link import TorchLink, Transfer
from engine.kv.socket_link import SocketLink
from engine.kv.transfers import IncomingTransfer


class Receiver(Protocol):
    """Takes pieces off the link in the order in which they were announced."""

    @property
    def room(self) -> bool:
        """A further piece can be expected."""
        ...

    def expect(self, piece: Piece) -> None:
        """Be ready for a piece; KvExchangeError when the link is of no use any more."""
        ...

    def take(self, piece: Piece, transfer: IncomingTransfer | None) -> None:
        """Wait for the piece that was expected first and store it, unless nobody wants it (None) any more.

        KvExchangeError when it does not come.
        """
        ...


class BufferedReceiver:
    """Receives messages of a process group, several ahead, and scatters one after the other."""

    def __init__(self, link: TorchLink, layout: KvLayout, config: KvConfig, backend: str) -> None:
        """Make the buffers."""
        self._link = link
        self._layout = layout
        self._checksum = config.checksum
        self._free = message_buffers(layout, config, backend, RECEIVING)
        self._coming: deque[tuple[Transfer, torch.Tensor]] = deque()

    @property
    def room(self) -> bool:
        """A buffer is free."""
        return bool(self._free)

    def expect(self, piece: Piece) -> None:
        """Start to receive a message."""
        buffer = self._free.pop()
        self._coming.append((self._link.receive(buffer[: self._layout.elements(piece)]), buffer))

    def take(self, piece: Piece, transfer: IncomingTransfer | None) -> None:
        """Wait for the oldest message and scatter it."""
        moving, buffer = self._coming.popleft()
        moving.wait()
        if transfer is not None:
            with transfer.lock:
                if not transfer.ended:
                    self._scatter(piece, transfer, buffer)
        self._free.append(buffer)

    def _scatter(self, piece: Piece, transfer: IncomingTransfer, buffer: torch.Tensor) -> None:
        if self._checksum:
            transfer.crc = checksum(buffer[: self._layout.elements(piece)], transfer.crc)
        self._layout.scatter(piece, transfer.block_ids, buffer)
        if self._layout.device.type == "cuda":
            torch.cuda.current_stream(self._layout.device).synchronize()
        transfer.stored(piece)


class InPlaceReceiver:
    """Receives into the blocks themselves; the kernel holds what comes before anybody takes it."""

    def __init__(self, link: SocketLink, layout: KvLayout, config: KvConfig) -> None:
        """Make room for what nobody wants."""
        self._link = link
        self._layout = layout
        self._checksum = config.checksum
        self._nowhere = memoryview(bytearray(message_blocks(layout, config) * layout.block_bytes))
        self._expected = 0

    @property
    def room(self) -> bool:
        """A few are enough: nothing is done for a piece before it is taken."""
        return self._expected < RECEIVING

    def expect(self, piece: Piece) -> None:
        """Count it."""
        self._expected += 1

    def take(self, piece: Piece, transfer: IncomingTransfer | None) -> None:
        """Receive a piece. Its transfer may end meanwhile, and is settled only afterwards."""
        self._expected -= 1
        regions = self._land(piece, transfer) if transfer is not None else []
        if transfer is None or not regions:
            self._link.receive([self._nowhere[: self._layout.nbytes(piece)]])
            return
        try:
            self._link.receive(regions)
        finally:
            with transfer.lock:
                transfer.landing = False
        with transfer.lock:
            if not transfer.ended:
                if self._checksum:
                    transfer.crc = region_checksum(regions, transfer.crc)
                transfer.stored(piece)

    def _land(self, piece: Piece, transfer: IncomingTransfer) -> list[memoryview]:
        """Return where a piece of a transfer goes; nowhere when it has ended."""
        with transfer.lock:
            if transfer.ended:
                return []
            regions = self._layout.regions(piece, transfer.block_ids)
            transfer.landing = True
            return regions
