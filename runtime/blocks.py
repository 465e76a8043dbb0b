"""The key/value cache as a pool of blocks with reference counts. No torch: the blocks themselves live in the runner.

A block holds `block_tokens` consecutive positions of a sequence. A block table lists a sequence's blocks in order and
belongs to that sequence; a block goes back to the free list when its last table lets go of it. Counts are there
because tables may share blocks (equal prefixes); a shared block is full and never written again.
"""

from collections import deque
from collections.abc import Iterable


class BlockPool:
    """Hands out blocks 0 .. num_blocks - 1. Not thread-safe: the engine thread owns it."""

    def __init__(self, num_blocks: int, block_tokens: int) -> None:
        if num_blocks < 1 or block_tokens < 1:
            raise ValueError(f"a pool of {num_blocks} blocks of {block_tokens} tokens")
        self.num_blocks = num_blocks
        self.block_tokens = block_tokens
        self._free = deque(range(num_blocks))
        self._references = [0] * num_blocks

    @property
    def num_free(self) -> int:
        """Blocks that nobody holds."""
        return len(self._free)

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
        if missing > len(self._free):
            return False
        for _ in range(missing):
            block = self._free.popleft()
            self._references[block] = 1
            table.append(block)
        return True

    def share(self, blocks: Iterable[int]) -> None:
        """One more table holds these blocks. Raises ValueError for a free block."""
        for block in blocks:
            if self._references[block] == 0:
                raise ValueError(f"block {block} is free")
            self._references[block] += 1

    def release(self, table: list[int]) -> None:
        """Empties `table`; blocks that no other table holds are free again. Raises ValueError for a free block."""
        while table:
            block = table.pop()
            if self._references[block] == 0:
                raise ValueError(f"block {block} is free already")
            self._references[block] -= 1
            if self._references[block] == 0:
                self._free.append(block)
