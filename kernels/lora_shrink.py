"""Shrink: hidden -> rank, the first half of y += scaling * (x A^T) B, for every segment and slice of a group.

    h[s, t, j] = sum_i x[t, i] * a[s, row_offset + j, i]      for every token t of a segment, j < its rank

    x  [tokens, in]               tokens of one slot are consecutive
    a  [slices, rows, in]         the pool; slices share x (q, k, v or gate, up), rows are rank rows of all slots
    h  [slices, tokens, max_rank] entries past a segment's rank, and tokens without adapter, are not written

Rank-exact: a segment of rank 4 beside one of rank 64 costs 4 rows. Sums accumulate in fp32 inside the matrix product
and are rounded once to x's dtype.
"""

import torch

from kernels.segments import Segments


def lora_shrink_reference(x: torch.Tensor, a: torch.Tensor, segments: Segments, h: torch.Tensor) -> None:
    """Writes h; one matrix product per segment and slice."""
    for start, end, _, offset, rank in segments.with_adapters():
        rows = slice(offset, offset + rank)
        for index in range(a.shape[0]):
            h[index, start:end, :rank] = x[start:end] @ a[index, rows].T


def lora_shrink(x: torch.Tensor, a: torch.Tensor, segments: Segments) -> torch.Tensor:
    """Returns h as above, in x's dtype. Raises ValueError when shapes or dtypes do not fit together."""
    if x.dim() != 2 or a.dim() != 3 or x.shape[1] != a.shape[2] or x.dtype != a.dtype:
        raise ValueError(f"lora_shrink: x {tuple(x.shape)} {x.dtype}, a {tuple(a.shape)} {a.dtype}")
    if x.shape[0] != segments.num_tokens:
        raise ValueError(f"lora_shrink: {x.shape[0]} tokens, segments of {segments.num_tokens}")
    h = x.new_empty((a.shape[0], x.shape[0], segments.max_rank))
    lora_shrink_reference(x, a, segments, h)
    return h
