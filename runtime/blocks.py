"""The key/value cache as a pool of blocks with reference counts. No torch: the blocks themselves live in the runner.

A block holds `block_tokens` consecutive positions of a sequence. A block table lists a sequence's blocks in order and
belongs to that sequence. A full block may be published under a key that says what it holds (`prefix_cache.py`); other
tables may then share it, and nobody writes it again.

    free > held (references > 0) > free                  unpublished
                held > idle > held, or evicted > held    published: idle blocks can still be found

Free blocks are taken first, then idle ones, least recently used first; a held block is never taken.
"""

from collections import OrderedDict, deque
from collections.abc import Iterable


class BlockPool:
    """Hands out blocks 0 .. num_blocks - 1. Not thread-safe: the engine thread owns it."""

    def __init__(self, num_blocks: int, block_tokens: int) -> None:
        if num_blocks < 1 or block_tokens < 1:
            raise ValueError(f"a pool of {num_blocks} blocks of {block_tokens} tokens")
        self.num_blocks = num_blocks
        self.block_tokens = block_tokens
        self._free = deque(range(num_blocks))
        self._idle: OrderedDict[int, None] = OrderedDict()
        self._references = [0] * num_blocks
        self._keys: list[bytes | None] = [None] * num_blocks
        self._by_key: dict[bytes, int] = {}

    @property
    def num_free(self) -> int:
        """Blocks that nobody holds, idle ones included."""
        return len(self._free) + len(self._idle)

    @property
    def num_cached(self) -> int:
        """Blocks that can be found by their key, held or idle."""
        return len(self._by_key)

    def needed(self, num_tokens: int) -> int:
        """Blocks that cover `num_tokens` positions."""
        return -(-num_tokens // self.block_tokens)

    def references(self, block: int) -> int:
        """How many tables hold the block."""
        return self._references[block]

    def grow(self, table: list[int], num_tokens: int) -> bool:
        """Extends `table` to cover `num_tokens` positions; False, with nothing changed, when too few are free."""
        missing = self.needed(num_tokens) - len(table)
        if missing <= 0:
            return True
        if missing > self.num_free:
            return False
        for _ in range(missing):
            block = self._take()
            self._references[block] = 1
            table.append(block)
        return True

    def find(self, keys: Iterable[bytes]) -> list[int]:
        """The published blocks of these keys, up to the first key that has none. They may be evicted until shared."""
        found = []
        for key in keys:
            block = self._by_key.get(key)
            if block is None:
                break
            found.append(block)
        return found

    def takes(self, found: Iterable[int], num_tokens: int) -> int:
        """By how much `num_free` falls when a table shares the blocks `found` and then grows to `num_tokens`."""
        return self.needed(num_tokens) - sum(self._references[block] > 0 for block in found)

    def share(self, blocks: Iterable[int]) -> None:
        """One more table holds these blocks. Raises ValueError for a block that is neither held nor idle."""
        for block in blocks:
            if self._references[block] == 0:
                if block not in self._idle:
                    raise ValueError(f"block {block} is free")
                del self._idle[block]
            self._references[block] += 1

    def release(self, table: list[int]) -> None:
        """Empties `table`; blocks that no other table holds are free or idle again. Raises ValueError for a free block.

        From the end, so that of a chain of idle blocks the last is evicted first: the others are of use without it.
        """
        while table:
            block = table.pop()
            if self._references[block] == 0:
                raise ValueError(f"block {block} is free already")
            self._references[block] -= 1
            if self._references[block] > 0:
                continue
            if self._keys[block] is None:
                self._free.append(block)
            else:
                self._idle[block] = None

    def publish(self, block: int, key: bytes) -> None:
        """The held block is full of what `key` says. A key that has a block keeps that one. Raises ValueError."""
        if self._references[block] == 0:
            raise ValueError(f"block {block} is free")
        if key not in self._by_key and self._keys[block] is None:
            self._by_key[key], self._keys[block] = block, key

    def withdraw(self, blocks: Iterable[int]) -> None:
        """What these held blocks contain is not to be found any more; those who hold them keep them."""
        for block in blocks:
            key, self._keys[block] = self._keys[block], None
            if key is not None:
                del self._by_key[key]

    def _take(self) -> int:
        if self._free:
            return self._free.popleft()
        block, _ = self._idle.popitem(last=False)
        self.withdraw((block,))
        return block
