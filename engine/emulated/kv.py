"""KV blocks: who holds which, and which freed ones can still be reused by their content."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence


def block_hashes(tokens: Sequence[int], block_size: int, known: Sequence[int] = ()) -> list[int]:
    """Return one hash per full block of tokens, each over all tokens up to its end; `known` are the first ones."""
    hashes = list(known)
    parent = hashes[-1] if hashes else 0
    for at in range(len(hashes) * block_size, len(tokens) - block_size + 1, block_size):
        parent = hash((parent, *tokens[at : at + block_size]))
        hashes.append(parent)
    return hashes


class BlockPool:
    """A fixed number of blocks; freed blocks with known content stay as a prefix cache until their room is wanted."""

    def __init__(self, total: int, prefix_caching: bool) -> None:
        """Start with every block free."""
        self._total = total
        self._caching = prefix_caching
        self._blank = list(range(total - 1, -1, -1))
        self._holders = [0] * total
        self._hash_of: dict[int, int] = {}
        self._block_of: dict[int, int] = {}
        self._reusable: OrderedDict[int, None] = OrderedDict()

    @property
    def free(self) -> int:
        """Blocks that nobody holds, the cached ones included."""
        return len(self._blank) + len(self._reusable)

    @property
    def held(self) -> int:
        """Blocks that somebody holds."""
        return self._total - self.free

    def match(self, hashes: Sequence[int]) -> list[int]:
        """Return the blocks of the longest cached prefix; they are not held yet."""
        blocks = []
        for value in hashes if self._caching else ():
            block = self._block_of.get(value)
            if block is None:
                break
            blocks.append(block)
        return blocks

    def hold(self, blocks: Sequence[int]) -> None:
        """Become a further holder of cached blocks."""
        for block in blocks:
            if self._holders[block] == 0:
                del self._reusable[block]
            self._holders[block] += 1

    def take(self, count: int) -> list[int] | None:
        """Hold `count` blank blocks, forgetting the content unused for longest; None when there are not enough."""
        if count > self.free:
            return None
        blocks = []
        for _ in range(count):
            if self._blank:
                block = self._blank.pop()
            else:
                block, _ = self._reusable.popitem(last=False)
                del self._block_of[self._hash_of.pop(block)]
            self._holders[block] = 1
            blocks.append(block)
        return blocks

    def name(self, block: int, value: int) -> None:
        """Make the content of a full block known; a second block with the same content stays nameless."""
        if self._caching and value not in self._block_of and block not in self._hash_of:
            self._block_of[value] = block
            self._hash_of[block] = value

    def release(self, blocks: Sequence[int]) -> None:
        """Give blocks back; the end of a prefix is forgotten before its start."""
        for block in reversed(blocks):
            self._holders[block] -= 1
            if self._holders[block] > 0:
                continue
            if block in self._hash_of:
                self._reusable[block] = None
            else:
                self._blank.append(block)
