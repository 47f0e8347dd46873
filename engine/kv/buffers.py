"""The memory that messages pass through on their way between the caches and the link."""

from __future__ import annotations

import torch

from engine.kv.config import KvConfig
from engine.kv.layout import KvLayout

RECEIVING = 4
"""Messages that a consumer is ready to receive at once."""
SENDING = 3
"""Messages that are gathered or sent at once."""
ANNOUNCED = 16
"""Messages that a producer announces ahead of their bytes."""


def message_blocks(layout: KvLayout, config: KvConfig) -> int:
    """Return how many blocks of one layer a message holds at most."""
    return max(1, config.message_bytes // layout.block_bytes)


def message_buffers(layout: KvLayout, config: KvConfig, backend: str, count: int) -> list[torch.Tensor]:
    """Return flat buffers of one message each: on the caches' device for NCCL, else in host memory, pinned for a GPU.

    They are written to once here, so that the first transfer does not wait for the pages.
    """
    device = layout.device if backend == "nccl" else torch.device("cpu")
    pinned = device.type == "cpu" and layout.device.type == "cuda"
    elements = message_blocks(layout, config) * layout.block_elements
    return [torch.empty(elements, dtype=layout.dtype, device=device, pin_memory=pinned).zero_() for _ in range(count)]
