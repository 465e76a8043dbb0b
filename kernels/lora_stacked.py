"""Shrink and expand of all active slots at once: the fast form for few tokens, where calls cost more than arithmetic.

The rows of the active slots are stacked into one A and one block-diagonal B, so that a whole group (q, k and v of
eight adapters, say) takes two matrix products and two element-wise steps:

    h = x a^T                 [tokens, slices * rows]     every token meets every stacked row
    h[foreign] = 0; h *= scaling                          then keeps the rows of its own slot
    y += h b^T

    a        [slices * rows, in]      slice-major; `rows` = rank rows of the active slots, one after the other
    b        [out, slices * rows]     block-diagonal: a slice's rows are zero outside its own columns
    scaling  [slices * rows]          fp32; h's dtype where that changes no bit of any factor, which saves two copies;
                                      None where all are powers of two, which b takes without losing a bit
    foreign  [tokens, slices * rows]  True where the row belongs to another token's slot; None with one slot

Measured on two CPU cores in bf16, 256 wide, three rank-8 adapters: 31 us a group, against 100-300 us for a loop over
segments and slices. It does `active slots` times the arithmetic of the loop, so the planner picks by size
(`runtime/layers/lora.py`). A stack that is used for many steps is worth packing (`kernels/linear.py`): 576 wide with
eight adapters of rank 16, a layer takes 171 us instead of 302 in bf16 and 244 instead of 588 in fp32; packing it 1 ms.

`foreign` entries are overwritten, not multiplied by zero: another account's weights may overflow h to infinity, and
infinity times zero would put NaN into this token. For the same reason B must be finite, which the pool checks.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch

from kernels.linear import LinearWeight


class Stack(NamedTuple):
    """The stacked weights of one layer and group."""

    a: LinearWeight
    b: LinearWeight
    scaling: torch.Tensor | None

    @property
    def num_bytes(self) -> int:
        """What its weights take."""
        return (self.a.shape[0] * self.a.shape[1] + self.b.shape[0] * self.b.shape[1]) * self.a.dtype.itemsize

    def packed(self) -> "Stack":
        """The same numbers in the layout that is read fastest."""
        return Stack(self.a.packed(), self.b.packed(), self.scaling)


def stack_rows(
    a: torch.Tensor, b: torch.Tensor, slices: Sequence[int], rows: torch.Tensor, scaling: torch.Tensor
) -> Stack:
    """Copies pool rows `rows` [n] of a [slices, pool rows, in] and b [pool rows, out] into a Stack.

    scaling: [slices, n] fp32, one factor per slice and stacked row.
    """
    count = rows.shape[0]
    scales = scaling.reshape(-1)
    stacked_a, stacked_b = a.index_select(1, rows).view(-1, a.shape[2]), b.index_select(0, rows)
    if len(slices) > 1:
        picked, column = stacked_b, 0
        stacked_b = b.new_zeros((len(slices) * count, b.shape[1]))
        for index, width in enumerate(slices):
            columns = slice(column, column + width)
            stacked_b[index * count : (index + 1) * count, columns] = picked[:, columns]
            column += width
    factors: torch.Tensor | None = scales
    if _doubles(scales, stacked_b):
        stacked_b.mul_(scales[:, None])
        factors = None
    elif torch.equal(scales.to(a.dtype).float(), scales):
        factors = scales.to(a.dtype)
    return Stack(LinearWeight.plain(stacked_a), LinearWeight.plain(stacked_b.t()), factors)


def _doubles(factors: torch.Tensor, b: torch.Tensor) -> bool:
    """Whether b times these factors keeps every bit: powers of two (alpha is usually the rank or twice it), and no
    number near the ends of the dtype's range. 0 is a module that its adapter lacks: its rows of b are zero already."""
    if b.dtype == torch.float16:
        return False
    mantissa, exponent = torch.frexp(factors)
    powers = ((mantissa == 0.5) & (exponent.abs() < 16)) | (factors == 0)
    return bool(powers.all()) and bool((b.abs() < 2.0**100).all())


def lora_stacked_reference(
    x: torch.Tensor, stack: Stack, foreign: torch.Tensor | None, y: torch.Tensor
) -> torch.Tensor:
    h = stack.a(x)
    if foreign is not None:
        h.masked_fill_(foreign, 0)
    if stack.scaling is not None:
        h.mul_(stack.scaling)
    return stack.b.plus(h, y)


def lora_stacked(x: torch.Tensor, stack: Stack, foreign: torch.Tensor | None, y: torch.Tensor) -> torch.Tensor:
    """The sum with y [tokens, out]: a new tensor, or y itself, changed; x is [tokens, in].

    Raises ValueError when shapes do not fit together.
    """
    tokens = x.shape[0]
    if x.shape[1] != stack.a.shape[1] or y.shape != (tokens, stack.b.shape[0]):
        raise ValueError(f"lora_stacked: x {tuple(x.shape)}, a {stack.a.shape}, y {tuple(y.shape)}")
    if foreign is not None and foreign.shape != (tokens, stack.a.shape[0]):
        raise ValueError(f"lora_stacked: foreign {tuple(foreign.shape)}, a {stack.a.shape}")
    return lora_stacked_reference(x, stack, foreign, y)
