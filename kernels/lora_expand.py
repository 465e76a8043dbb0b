"""Expand: rank -> out, the second half of y += scaling * (x A^T) B, for every segment and slice of a group.

    y[t, columns of slice s] += sum_j (scaling[slot, s] * h[s, t, j]) * b[row_offset + j, columns of slice s]

    h        [slices, tokens, max_rank]   from `lora_shrink`
    b        [rows, out]                  the pool, transposed; columns of the slices side by side (q | k | v)
    scaling  [slots, slices]              fp32, applied in fp32 before h is rounded to the weights' dtype
    y        [tokens, out]                changed in place; rows without adapter are not touched

Rank-exact like the shrink; a slice that the adapter lacks has zero rows in the pool and scaling 0.
"""

from collections.abc import Sequence

import torch

from kernels.segments import Segments


def lora_expand_reference(
    h: torch.Tensor, b: torch.Tensor, scaling: torch.Tensor, slices: Sequence[int], segments: Segments, y: torch.Tensor
) -> None:
    """Adds to y; one matrix product per segment and slice."""
    for start, end, slot, offset, rank in segments.with_adapters():
        column = 0
        for index, width in enumerate(slices):
            columns = slice(column, column + width)
            scaled = (h[index, start:end, :rank] * scaling[slot, index]).to(b.dtype)
            y[start:end, columns].addmm_(scaled, b[offset : offset + rank, columns])
            column += width


def lora_expand(
    h: torch.Tensor, b: torch.Tensor, scaling: torch.Tensor, slices: Sequence[int], segments: Segments, y: torch.Tensor
) -> None:
    """Adds to y as above; `slices` are the slices' widths. Raises ValueError when shapes or dtypes do not fit."""
    if h.shape[0] != len(slices) or scaling.shape[1] != len(slices) or sum(slices) != b.shape[1]:
        raise ValueError(f"lora_expand: slices {tuple(slices)}, h {tuple(h.shape)}, b {tuple(b.shape)}")
    if y.shape != (segments.num_tokens, b.shape[1]) or h.shape[1] != y.shape[0]:
        raise ValueError(f"lora_expand: y {tuple(y.shape)}, h {tuple(h.shape)}, tokens {segments.num_tokens}")
    if not (h.dtype == b.dtype == y.dtype) or scaling.dtype != torch.float32:
        raise ValueError(f"lora_expand: h {h.dtype}, b {b.dtype}, y {y.dtype}, scaling {scaling.dtype}")
    lora_expand_reference(h, b, scaling, slices, segments, y)
