"""Shrink and expand of all active slots at once: the fast form for few tokens, where calls cost more than arithmetic.

The rows of the active slots are stacked into one A and one block-diagonal B, so that a whole group (q, k and v of
eight adapters, say) takes two matrix products and two element-wise steps:

    h = x a^T                 [tokens, slices * rows]     every token meets every stacked row
    h[foreign] = 0; h *= scaling                          then keeps the rows of its own slot
    y += h b^T

    a        [slices * rows, in]      slice-major; `rows` = rank rows of the active slots, one after the other
    b        [out, slices * rows]     block-diagonal: a slice's rows are zero outside its own columns
    scaling  [slices * rows]          fp32; h's dtype where that changes no bit of any factor, which saves two copies
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
    scaling: torch.Tensor

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
    factors = scaling.reshape(-1)
    if torch.equal(factors.to(a.dtype).float(), factors):
        factors = factors.to(a.dtype)
    stacked_a = a.index_select(1, rows).view(-1, a.shape[2])
    picked = b.index_select(0, rows)
    if len(slices) == 1:
        return _stack(stacked_a, picked, factors)
    stacked_b = b.new_zeros((len(slices) * count, b.shape[1]))
    column = 0
    for index, width in enumerate(slices):
        columns = slice(column, column + width)
        stacked_b[index * count : (index + 1) * count, columns] = picked[:, columns]
        column += width
    return _stack(stacked_a, stacked_b, factors)


def _stack(a: torch.Tensor, b: torch.Tensor, scaling: torch.Tensor) -> Stack:
    return Stack(LinearWeight.plain(a), LinearWeight.plain(b.t()), scaling)


def lora_stacked_reference(x: torch.Tensor, stack: Stack, foreign: torch.Tensor | None, y: torch.Tensor) -> None:
    """Adds to y as above."""
    h = stack.a(x)
    if foreign is not None:
        h.masked_fill_(foreign, 0)
    h.mul_(stack.scaling)
    y.add_(stack.b(h))


def lora_stacked(x: torch.Tensor, stack: Stack, foreign: torch.Tensor | None, y: torch.Tensor) -> None:
    """Adds to y [tokens, out] in place; x is [tokens, in]. Raises ValueError when shapes do not fit together."""
    if x.shape[1] != stack.a.shape[1] or y.shape != (x.shape[0], stack.b.shape[0]):
        raise ValueError(f"lora_stacked: x {tuple(x.shape)}, a {tuple(stack.a.shape)}, y {tuple(y.shape)}")
    if foreign is not None and foreign.shape != (x.shape[0], stack.a.shape[0]):
        raise ValueError(f"lora_stacked: foreign {tuple(foreign.shape)}, a {tuple(stack.a.shape)}")
    lora_stacked_reference(x, stack, foreign, y)
