"""How the pieces of a producer's transfers get onto the link: through buffers, or from where they lie."""

from __future__ import annotations

from collections import deque
from typing import Protocol

import torch

from engine.kv.buffers import SENDING, message_blocks, message_buffers
from engine.kv.config import KvConfig
from engine.kv.layout import KvLayout, Piece, checksum, region_checksum
from engine.kv.link import TorchLink, Transfer
from engine.kv.socket_link import SocketLink
from engine.kv.transfers import DeviceEvent, OutgoingTransfer


class Sender(Protocol):
    """Sends pieces in the order in which they are given.

    The consumer expects as many bytes as were announced, and never uses those of a transfer that was aborted: of one
    that has ended, whatever is at hand is sent.
    """

    def send(self, transfer: OutgoingTransfer, piece: Piece, event: DeviceEvent | None) -> None:
        """Start to send a piece, once event has passed; KvExchangeError when the link is of no use any more."""
        ...

    def flush(self) -> None:
        """Return when everything has left the caches and buffers."""
        ...


class BufferedSender:
    """Gathers a piece into a message for a process group; several are under way at once."""

    def __init__(self, link: TorchLink, layout: KvLayout, config: KvConfig, backend: str) -> None:
        """Make the buffers."""
        self._link = link
        self._layout = layout
        self._checksum = config.checksum
        self._free = message_buffers(layout, config, backend, SENDING)
        self._moving: deque[tuple[Transfer, torch.Tensor]] = deque()

    def send(self, transfer: OutgoingTransfer, piece: Piece, event: DeviceEvent | None) -> None:
        """Gather a piece and start to send it."""
        if not self._free:
            self._wait()
        buffer = self._free.pop()
        if event is not None:
            event.synchronize()  # not under the lock: the engine takes it for every layer that it launches
        with transfer.lock:
            data = buffer[: self._layout.elements(piece)]
            if not transfer.ended:
                self._layout.gather(piece, transfer.block_ids, buffer)
                if self._layout.device.type == "cuda":
                    torch.cuda.current_stream(self._layout.device).synchronize()
                if self._checksum:
                    transfer.crc = checksum(data, transfer.crc)
        self._moving.append((self._link.send(data), buffer))

    def flush(self) -> None:
        """Wait for the messages under way."""
        while self._moving:
            self._wait()

    def _wait(self) -> None:
        sending, buffer = self._moving.popleft()
        sending.wait()
        self._free.append(buffer)


class InPlaceSender:
    """Sends blocks from the caches themselves, one piece after the other."""

    def __init__(self, link: SocketLink, layout: KvLayout, config: KvConfig) -> None:
        """Nothing is copied; a message of zeros stands for what was aborted."""
        self._link = link
        self._layout = layout
        self._checksum = config.checksum
        self._nothing = memoryview(bytes(message_blocks(layout, config) * layout.block_bytes))

    def send(self, transfer: OutgoingTransfer, piece: Piece, event: DeviceEvent | None) -> None:
        """Send a piece. Its transfer may end meanwhile: then nobody will use it, and it is not said to be done."""
        with transfer.lock:
            if transfer.ended:
                regions = [self._nothing[: self._layout.nbytes(piece)]]
            else:
                regions = self._layout.regions(piece, transfer.block_ids)
                if self._checksum:
                    transfer.crc = region_checksum(regions, transfer.crc)
        self._link.send(regions)

    def flush(self) -> None:
        """Nothing is under way between calls."""
