"""The inner loop of both attention kernels: a tile of queries walks over cells of the paged cache, once.

    top'    = max(top, max_j s_j)                 s_j = q . k_j, scaled for base 2; -inf where the query may not look
    total'  = total * 2^(top - top') + sum_j 2^(s_j - top')
    acc'    = acc * 2^(top - top') + sum_j 2^(s_j - top') v_j

    q      [QUERIES, DIM_BLOCK]    the cache's dtype; rows that share one key/value head
    acc    [QUERIES, DIM_BLOCK]    fp32; top, total [QUERIES] fp32; out = acc / total in the end
    table  block numbers of the sequence, from position 0

A tile of cells is TILE positions. Each position looks its block up by itself, so blocks may have any size and a tile
may start anywhere; the numbers stay in the first cache level. Keys of one token and head are DIM elements side by side,
256 bytes for the usual 128 in 16 bits, so rows of a tile are whole memory sectors though tokens lie apart.

A walk that is not MASKED reads only cells that every query sees. A MASKED one reads positions below `hi` only: cells
that nobody wrote yet are not touched, whatever they hold. Dots are 16 bits in, fp32 out; fp32 caches use plain fp32.
The soft cap needs tanh, which is written with 2^x: cap * (1 - 2 / (e^(2 s / cap) + 1)); both infinities come out right.
"""

import math
from typing import Final, NamedTuple

from kernels.triton_jit import Number, Pointer, constexpr, jit, tl

LOG2_E: Final = math.log2(math.e)


class ScoreScales(NamedTuple):
    """What `scan_cells` multiplies with: q . k before, and the capped score after, 1 without a cap."""

    before: float
    after: float

    @classmethod
    def of(cls, scale: float, softcap: float | None) -> "ScoreScales":
        """Scores come out in base 2."""
        if softcap is None:
            return cls(scale * LOG2_E, 1.0)
        return cls(2 * scale / softcap * LOG2_E, softcap * LOG2_E)


@jit
def scan_cells(
    acc: Number,
    top: Number,
    total: Number,
    q: Number,
    first: Number,
    last: Number,
    lo: Number,
    hi: Number,
    table: Pointer,
    keys: Pointer,
    block_stride: Number,
    token_stride: Number,
    value_offset: Number,
    scale_before: Number,
    scale_after: Number,
    BLOCK_TOKENS: constexpr,
    TILE: constexpr,
    DIM: constexpr,
    DIM_BLOCK: constexpr,
    MASKED: constexpr,
    WINDOWED: constexpr,
    CAPPED: constexpr,
) -> tuple[Number, Number, Number]:
    """acc, top and total after the positions lo .. hi - 1, of which query i sees first[i] .. last[i] (`first` when
    WINDOWED). Without MASKED, hi - lo is a multiple of TILE and everybody sees everything."""
    cells = tl.arange(0, TILE)
    dims = tl.arange(0, DIM_BLOCK)
    for start in tl.range(lo, hi, TILE):
        at = start + cells
        if MASKED:
            inside = at < hi
            block = tl.load(table + at // BLOCK_TOKENS, mask=inside, other=0).to(tl.int64)
            held = inside[:, None] & (dims < DIM)[None, :]
        else:
            block = tl.load(table + at // BLOCK_TOKENS).to(tl.int64)
            held = (cells >= 0)[:, None] & (dims < DIM)[None, :]
        cell = block * block_stride + (at % BLOCK_TOKENS) * token_stride
        pointers = keys + cell[:, None] + dims[None, :]
        k = tl.load(pointers, mask=held, other=0.0)
        score = tl.dot(q, tl.trans(k), input_precision="ieee") * scale_before
        if CAPPED:
            score = (1.0 - 2.0 / (tl.exp2(score) + 1.0)) * scale_after
        if MASKED:
            seen = inside[None, :] & (at[None, :] <= last[:, None])
            if WINDOWED:
                seen = seen & (at[None, :] >= first[:, None])
            score = tl.where(seen, score, float("-inf"))
        higher = tl.maximum(top, tl.max(score, 1))
        # A query that has seen nothing yet: -inf minus -inf would be NaN.
        shift = tl.where(higher == float("-inf"), 0.0, higher)
        share = tl.exp2(score - shift[:, None])
        keep = tl.exp2(top - shift)
        total = total * keep + tl.sum(share, 1)
        v = tl.load(pointers + value_offset, mask=held, other=0.0)
        acc = tl.dot(share.to(v.dtype), v, acc * keep[:, None], input_precision="ieee")
        top = higher
    return acc, top, total
