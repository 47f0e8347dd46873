"""Where the bytes of a KV block lie in the caches of an engine, and how they are gathered and scattered."""

from __future__ import annotations

import hashlib
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch


@dataclass(frozen=True, slots=True)
class Piece:
    """Blocks [block_start, block_end) of layers [layer_start, layer_end) of a request, counted from its first block."""

    layer_start: int
    layer_end: int
    block_start: int
    block_end: int

    @property
    def layers(self) -> int:
        """Number of layers."""
        return self.layer_end - self.layer_start

    @property
    def blocks(self) -> int:
        """Number of blocks per layer."""
        return self.block_end - self.block_start


class KvLayout:
    """The caches of one engine: one tensor per layer, one of whose first two dimensions counts the blocks.

    Layers must have the same shape and dtype. A layer is seen as planes of blocks x the rest of a block (two planes
    where keys and values come before the blocks), and a message is layers x planes x blocks x rest, contiguous.
    """

    def __init__(self, caches: Sequence[torch.Tensor], num_blocks: int) -> None:
        """Find the block dimension; ValueError when the layers differ or no dimension counts num_blocks."""
        if not caches:
            raise ValueError("the engine has no KV cache layer to exchange")
        first = caches[0]
        for index, cache in enumerate(caches):
            if cache.shape != first.shape or cache.dtype != first.dtype:
                raise ValueError(
                    f"KV layers must be alike to be exchanged: layer {index} is {tuple(cache.shape)} {cache.dtype}, "
                    f"layer 0 is {tuple(first.shape)} {first.dtype}"
                )
        dims = [d for d in range(min(2, first.dim())) if first.shape[d] == num_blocks]
        if not dims:
            raise ValueError(f"no leading dimension of {tuple(first.shape)} counts {num_blocks} blocks")
        self._planes = [_planes(cache, dims[0]) for cache in caches]
        self._signature = (
            f"{len(caches)}|{dims[0]}|{[n for d, n in enumerate(first.shape) if d != dims[0]]}|{first.dtype}"
        )
        self.num_blocks = num_blocks
        self.block_bytes: int = first.numel() // num_blocks * first.element_size()
        self.dtype = self._planes[0][0].dtype
        self.block_elements: int = self.block_bytes // self._planes[0][0].element_size()
        self.device = first.device
        self.in_host_words = self.device.type == "cpu" and self.dtype == torch.int64
        """The caches are contiguous host memory: a block can be sent from where it lies, and received there."""
        self._memory = [_bytes_of(planes) for planes in self._planes] if self.in_host_words else []

    @property
    def layers(self) -> int:
        """Number of layers."""
        return len(self._planes)

    def fingerprint(self) -> str:
        """Return what two ends must have in common for a block of one to be a block of the other."""
        return hashlib.sha256(self._signature.encode()).hexdigest()[:16]

    def nbytes(self, piece: Piece) -> int:
        """Size of a piece, bytes."""
        return piece.layers * piece.blocks * self.block_bytes

    def elements(self, piece: Piece) -> int:
        """Size of a piece in elements of self.dtype."""
        return piece.layers * piece.blocks * self.block_elements

    def regions(self, piece: Piece, block_ids: Sequence[int]) -> list[memoryview]:
        """Return the memory of each block of a piece, in a message's order; only where the caches are in_host_words."""
        planes = [plane for layer in self._memory[piece.layer_start : piece.layer_end] for plane in layer]
        size = self.block_bytes // len(self._planes[0])
        starts = [block * size for block in block_ids[piece.block_start : piece.block_end]]
        return [plane[start : start + size] for plane in planes for start in starts]

    def _rows(self, piece: Piece, buffer: torch.Tensor) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """Yield each plane of the piece with the part of the buffer that holds its blocks."""
        planes = [plane for layer in self._planes[piece.layer_start : piece.layer_end] for plane in layer]
        size = piece.blocks * self.block_elements // len(self._planes[0])
        for index, plane in enumerate(planes):
            part = buffer[index * size : (index + 1) * size]
            yield plane, part.view(piece.blocks, *plane.shape[1:])

    def gather(self, piece: Piece, block_ids: Sequence[int], buffer: torch.Tensor) -> torch.Tensor:
        """Copy the piece's blocks from the caches into the front of buffer and return that part.

        block_ids are the request's blocks from its first on; buffer is flat, of self.dtype, on the caches' device or
        in host memory.
        """
        ids = torch.tensor(block_ids[piece.block_start : piece.block_end], dtype=torch.long, device=self.device)
        for plane, rows in self._rows(piece, buffer):
            if buffer.device == self.device:
                torch.index_select(plane, 0, ids, out=rows)
            else:
                rows.copy_(plane.index_select(0, ids), non_blocking=True)
        return buffer[: self.elements(piece)]

    def scatter(self, piece: Piece, block_ids: Sequence[int], buffer: torch.Tensor) -> None:
        """Copy the front of buffer into the piece's blocks of the caches (the inverse of gather)."""
        chosen = block_ids[piece.block_start : piece.block_end]
        if self.in_host_words:
            # Twice as fast as index_copy_, which does not copy a block at a time in host memory.
            places = np.array(chosen)
            for plane, rows in self._rows(piece, buffer):
                plane.numpy()[places] = rows.numpy()
            return
        ids = torch.tensor(chosen, dtype=torch.long, device=self.device)
        for plane, rows in self._rows(piece, buffer):
            plane.index_copy_(0, ids, rows.to(self.device, non_blocking=True))


def _planes(cache: torch.Tensor, block_dim: int) -> list[torch.Tensor]:
    """Split a layer into tensors of [blocks, rest]; as wide words where memory allows, for then a block is one copy."""
    planes = [cache] if block_dim == 0 else list(cache.unbind(0))
    if all(plane.is_contiguous() for plane in planes):
        flat = [plane.view(plane.shape[0], -1) for plane in planes]
        if flat[0].shape[1] * flat[0].element_size() % 8 == 0:
            return [plane.view(torch.int64) for plane in flat]
        return flat
    return planes


def _bytes_of(planes: list[torch.Tensor]) -> list[memoryview]:
    return [memoryview(plane.numpy().reshape(-1).view(np.uint8)) for plane in planes]


def region_checksum(regions: Sequence[memoryview], before: int = 0) -> int:
    """CRC-32 of regions one after the other: what checksum returns of the message that they make."""
    for region in regions:
        before = zlib.crc32(region, before)
    return before


def checksum(data: torch.Tensor, before: int = 0) -> int:
    """CRC-32 of the bytes of a contiguous tensor, or of a row of tensors: before is that of the ones in front of it."""
    return zlib.crc32(data.detach().cpu().view(torch.uint8).numpy().data, before)
