"""What the prefix cache of a replica holds, as far as its own events tell.

An engine keeps the KV blocks of requests that have ended until it needs the memory, oldest first. A block that became
free when F blocks were free is gone after about F more were allocated; it is counted on for most of that time only,
because a promise that relies on a block which is gone would be broken.
"""

from __future__ import annotations

from collections.abc import Sequence

TRUSTED_SHARE = 0.7
"""Part of its life in the cache for which a block is counted on."""


def block_chain(token_ids: Sequence[int], block_size: int) -> tuple[int, ...]:
    """One number per full block of tokens, which stands for the block and all before it."""
    chain, before = [], 0
    for start in range(0, len(token_ids) - block_size + 1, block_size):
        before = hash((before, tuple(token_ids[start : start + block_size])))
        chain.append(before)
    return tuple(chain)


class PrefixIndex:
    """Blocks that one replica holds; time is counted in blocks that it has filled."""

    def __init__(self, block_size: int, total_blocks: int) -> None:
        """Start empty."""
        self.block_size = block_size
        self._total_blocks = total_blocks
        self._trusted_until: dict[int, float] = {}
        self._filled_blocks = 0.0

    def computed(self, tokens: int) -> None:
        """The engine has computed this many tokens, so that much of its memory was filled anew."""
        self._filled_blocks += tokens / self.block_size

    def add(self, chain: Sequence[int], free_blocks: int) -> None:
        """A request with these blocks was computed, or has ended, while free_blocks were free."""
        until = self._filled_blocks + TRUSTED_SHARE * free_blocks
        for number in chain:
            self._trusted_until[number] = until
        if len(self._trusted_until) > 2 * self._total_blocks:
            now = self._filled_blocks
            self._trusted_until = {number: end for number, end in self._trusted_until.items() if end > now}

    def forget(self, chain: Sequence[int], held_tokens: int) -> None:
        """The engine held only this many tokens of a prompt that was expected to be held longer."""
        for number in chain[held_tokens // self.block_size :]:
            self._trusted_until.pop(number, None)

    def held_tokens(self, chain: Sequence[int]) -> int:
        """Tokens at the beginning of a prompt that need no computing here."""
        blocks = 0
        for number in chain:
            if self._trusted_until.get(number, -1.0) <= self._filled_blocks:
                break
            blocks += 1
        return blocks * self.block_size

    def __len__(self) -> int:
        return len(self._trusted_until)
