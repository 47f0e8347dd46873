"""The prefix cache of one replica: KV of finished rounds, kept per session until memory is wanted."""

from __future__ import annotations

from collections import OrderedDict


class PrefixCache:
    """Blocks by session, least recently used first out; only whole blocks count."""

    def __init__(self, block_size: int) -> None:
        """Start empty."""
        self._block_size = block_size
        self._blocks: OrderedDict[int, int] = OrderedDict()
        self.total_blocks = 0

    def put(self, session: int, blocks: int) -> None:
        """Keep a finished round's blocks (the last, partly filled one is not kept by the caller)."""
        self.total_blocks += blocks - self._blocks.pop(session, 0)
        if blocks > 0:
            self._blocks[session] = blocks

    def cached_tokens(self, session: int, shared_prefix_tokens: int, prompt_tokens: int) -> int:
        """Tokens of a prompt that need no computing; at least one prompt token is always computed."""
        blocks = min(self._blocks.get(session, 0), shared_prefix_tokens // self._block_size)
        return min(blocks, (prompt_tokens - 1) // self._block_size) * self._block_size

    def take(self, session: int) -> None:
        """The session's blocks are held by a running request again."""
        self.total_blocks -= self._blocks.pop(session, 0)

    def shrink_to(self, blocks: int) -> None:
        """Evict until at most this many blocks are kept."""
        while self.total_blocks > blocks:
            _, freed = self._blocks.popitem(last=False)
            self.total_blocks -= freed

    def clear(self) -> None:
        """Forget everything (the replica died)."""
        self._blocks.clear()
        self.total_blocks = 0
