"""The paged key/value cache: one tensor for all layers, plus one block that stays empty.

    cells  [layers, num_blocks + 1, block_tokens, 2, kv_heads, head_dim]

Block `num_blocks` is never written; short block tables are padded with it. A block's cells past the end of its
sequence may still hold what an earlier sequence wrote, and attention reads and masks them: a mask of -inf does not
silence an infinity or NaN left there by some adapter, so a partly filled block is cleared when a sequence enters it.
"""

from collections.abc import Sequence

import torch

from storage.geometry import Geometry


class KVCache:
    """Who owns which block is decided elsewhere (`runtime/blocks.py`); this holds the numbers."""

    def __init__(
        self, geometry: Geometry, num_blocks: int, block_tokens: int, dtype: torch.dtype, device: torch.device
    ) -> None:
        self.num_blocks = num_blocks
        self.block_tokens = block_tokens
        self.empty_block = num_blocks
        shape = (geometry.num_layers, num_blocks + 1, block_tokens, 2, geometry.num_kv_heads, geometry.head_dim)
        self._cells = torch.zeros(shape, dtype=dtype, device=device)
        self.layers = tuple(self._cells.unbind(0))

    @staticmethod
    def block_bytes(geometry: Geometry, block_tokens: int, dtype: torch.dtype) -> int:
        """Bytes of one block over all layers."""
        per_token = geometry.num_layers * 2 * geometry.num_kv_heads * geometry.head_dim
        return per_token * block_tokens * dtype.itemsize

    def clear(self, blocks: Sequence[int]) -> None:
        """Zeroes these blocks in every layer."""
        self._cells.index_fill_(1, torch.tensor(blocks, device=self._cells.device), 0)
