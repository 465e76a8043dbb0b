"""Attention over the paged cache, for single queries and for tiles of a prompt: the formula of
`kernels/paged_attention.py`.

An item is a tile of queries of one sequence and one key/value head: all query heads that share it go through its keys
and values together. Scores of the whole context are kept (fp32, in the thread's scratch), so that the softmax is the
plain one and a query's numbers do not depend on the tile that it came in: sums over positions start at a multiple of
the vector's length, whatever the window, and cells that a query does not see weigh exactly zero.

Cells past the last query of the tile are never read, so the cache may hold anything there.
"""

from typing import Any, Final

import numpy as np

from kernels.cpu import records as c
from kernels.cpu.compiling import compiled
from kernels.cpu.elementwise import floats, soft_cap, softmax
from kernels.cpu.rows import axpy, dot
from kernels.cpu.team import take
from kernels.cpu.tiles import BLOCK, element_bytes, weave
from kernels.cpu.vectors import LANES

TILE_ROWS: Final = 16
"""Queries times heads that share a key/value head go through a tile together, unless the heads alone are more."""


def tile_tokens(num_heads: int, kv_heads: int) -> int:
    """How many queries of a prompt a tile holds."""
    return max(1, TILE_ROWS * kv_heads // num_heads)


def scratch_bytes(num_heads: int, kv_heads: int, head_dim: int, max_context: int, block_tokens: int) -> int:
    """Of each thread: queries, scores and results of one tile."""
    rows = tile_tokens(num_heads, kv_heads) * (num_heads // kv_heads)
    return rows * 4 * (2 * head_dim + max_context + 2 * LANES * block_tokens)


@compiled
def weaves(num_heads: int, kv_heads: int, head_dim: int) -> bool:
    """Whether an item's part of Y is made of whole blocks, so that it weaves its own; else `weave_rows` is to come."""
    return num_heads // kv_heads * head_dim % BLOCK == 0


@compiled
def attend(marker: Any, r: Any, f: Any, step: Any, control: int, scratch: int) -> None:
    """Y = attention of the queries in X, whose keys and values are in the CACHE already."""
    kv_heads = r[c.KV_HEADS]
    items = len(step.tiles) * kv_heads
    while True:
        item = take(control, 1)
        if item >= items:
            break
        _attend(marker, r, f, step, step.tiles[item // kv_heads], item % kv_heads, scratch)


@compiled
def _attend(marker: Any, r: Any, f: Any, step: Any, tile: Any, kv_head: int, scratch: int) -> None:
    dim, size, tokens = r[c.HEAD_DIM], r[c.BLOCK_TOKENS], tile[c.COUNT]
    shared = r[c.NUM_HEADS] // r[c.KV_HEADS]
    rows, start, window = tokens * shared, tile[c.START], r[c.WINDOW]
    last = start + tokens - 1
    first = max(0, start - window + 1) if window else 0
    base = first // (size * LANES) * (size * LANES)  # position of the first column of the scores
    columns = last + 1 - base
    stride = (columns + LANES - 1) // LANES * LANES * 4
    queries = scratch
    results = queries + rows * dim * 4
    scores = results + rows * dim * 4

    for i in range(tokens):
        x = r[c.X] + (tile[c.FIRST] + i) * r[c.X_STRIDE] + kv_head * shared * dim * 4
        scaled, numbers = floats(queries + i * shared * dim * 4, shared * dim), floats(x, shared * dim)
        for j in range(shared * dim):
            scaled[j] = numbers[j] * f[c.SCALE]
    for row in range(rows):
        weave(marker, queries + row * dim * 4, dim)

    cell_bytes = 2 * r[c.KV_HEADS] * dim * element_bytes(marker)
    keys = r[c.CACHE] + kv_head * dim * element_bytes(marker)
    for block in range(first // size, last // size + 1):
        cells = min(size, last + 1 - block * size)
        place = keys + step.blocks[tile[c.TABLE] + block] * size * cell_bytes
        column = scores + (block * size - base) * 4
        dot(marker, queries, dim * 4, rows, place, cell_bytes, cells, column, stride, dim, 0, 0)

    out = floats(results, rows * dim)
    out[:] = np.float32(0)
    for row in range(rows):
        position = start + row // shared
        seen = max(0, position - window + 1) if window else 0
        line = scores + row * stride
        if f[c.SOFT_CAP] != np.float32(0):
            soft_cap(line + (seen - base) * 4, position + 1 - seen, f[c.SOFT_CAP])
        floats(queries, rows * dim)[row] = softmax(line, seen - base, position + 1 - seen, columns)

    values = keys + cell_bytes // 2
    for block in range(first // size, last // size + 1):
        cells = min(size, last + 1 - block * size)
        place = values + step.blocks[tile[c.TABLE] + block] * size * cell_bytes
        weights = scores + (block * size - base) * 4
        axpy(marker, weights, stride, rows, place, cell_bytes, results, dim * 4, dim, cells)

    for row in range(rows):
        share = np.float32(1) / floats(queries, rows * dim)[row]
        token, head = tile[c.FIRST] + row // shared, kv_head * shared + row % shared
        y = floats(r[c.Y] + token * r[c.Y_STRIDE] + head * dim * 4, dim)
        for j in range(dim):
            y[j] = out[row * dim + j] * share
    if weaves(r[c.NUM_HEADS], r[c.KV_HEADS], dim):
        for i in range(tokens):
            weave(marker, r[c.Y] + (tile[c.FIRST] + i) * r[c.Y_STRIDE] + kv_head * shared * dim * 4, shared * dim)
