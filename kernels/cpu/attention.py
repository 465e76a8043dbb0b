"""Attention over the paged cache, for single queries and for tiles of a prompt: the formula of
`kernels/paged_attention.py`.

An item is a tile of queries of one sequence and one key/value head: all query heads that share it go through its keys
and values together; from PACKED_ROWS on through packed ones (`panels.py`), which gives the same bits. Scores of the
whole context are kept (fp32, in the thread's scratch), so that the softmax is the plain one and a query's numbers do
not depend on the tile that it came in: sums over positions start at a multiple of the vector's length, whatever the
window, and cells that a query does not see weigh exactly zero.

Cells past the last query of the tile are never read, so the cache may hold anything there.
"""

from typing import Any, Final

import numpy as np
from numba import carray

from kernels.cpu import records as c
from kernels.cpu.compiling import compiled
from kernels.cpu.elementwise import floats, soft_cap, softmax
from kernels.cpu.many_rows import axpy_many, multiply, pack_cells, pack_strips, packed_bytes
from kernels.cpu.panels import GROUPS, integers_at
from kernels.cpu.rows import axpy, dot, widen
from kernels.cpu.team import take
from kernels.cpu.tiles import BLOCK, element_bytes, weave
from kernels.cpu.vectors import LANES

TILE_ROWS: Final = 64
LEAST_ROWS: Final = 16
"""Queries times heads that share a key/value head go through a tile together, unless the heads alone are more: the
higher the tile, the less is packed for each. With a long context fewer, or their scores would not fit into caches."""

SCORE_BYTES: Final = 4 << 20
"""What the scores of more than LEAST_ROWS may take."""

PACKED_ROWS: Final = 32
"""From here on keys and values are packed; for fewer rows that costs more than it saves."""

CELLS: Final = 2 * GROUPS * LANES
"""Keys that are packed at once, and values that are widened at once."""


def tile_tokens(num_heads: int, kv_heads: int, context: int) -> int:
    """How many queries of a prompt a tile holds, the last of which sees at most `context` positions."""
    rows = min(TILE_ROWS, max(LEAST_ROWS, SCORE_BYTES // (4 * context)))
    return max(1, rows * kv_heads // num_heads)


def scratch_bytes(num_heads: int, kv_heads: int, head_dim: int, max_context: int) -> int:
    """Of each thread: queries, scores and results of one tile, and what is packed for it."""
    shared = num_heads // kv_heads
    rows = tile_tokens(num_heads, kv_heads, 1) * shared
    scores = min(rows * max_context, max(max(LEAST_ROWS, shared) * max_context, SCORE_BYTES // 4))
    packed = (rounded(rows) + CELLS) * rounded(head_dim)
    return 4 * (rows * (2 * head_dim + 2 * LANES) + scores + packed) + 8 * CELLS


@compiled
def rounded(count: int) -> int:
    """To whole vectors."""
    return (count + LANES - 1) // LANES * LANES


@compiled
def weaves(num_heads: int, kv_heads: int, head_dim: int) -> bool:
    """Whether an item's part of Y is made of whole blocks, so that it weaves its own; else `weave_rows` is to come."""
    return num_heads // kv_heads * head_dim % BLOCK == 0


@compiled
def attend(held: Any, marker: Any, r: Any, f: Any, step: Any, control: int, scratch: int) -> None:
    """Y = attention of the queries in X, whose keys and values are in the CACHE already; markers as `operations.py`."""
    kv_heads = r[c.KV_HEADS]
    items = len(step.tiles) * kv_heads
    while True:
        item = items - 1 - take(control, 1)  # a prompt's last tiles, which see most, first: all threads end together
        if item < 0:
            break
        _attend(held, marker, r, f, step, step.tiles[item // kv_heads], item % kv_heads, scratch)


@compiled
def _attend(held: Any, marker: Any, r: Any, f: Any, step: Any, tile: Any, kv_head: int, scratch: int) -> None:
    dim, size, tokens = r[c.HEAD_DIM], r[c.BLOCK_TOKENS], tile[c.COUNT]
    shared = r[c.NUM_HEADS] // r[c.KV_HEADS]
    rows, start, window = tokens * shared, tile[c.START], r[c.WINDOW]
    last = start + tokens - 1
    first = max(0, start - window + 1) if window else 0
    base = first // (size * LANES) * (size * LANES)  # position of the first column of the scores
    columns = last + 1 - base
    stride = (rounded(columns) | LANES) * 4  # an odd number of lines: neighbours are not in the same place of a cache
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
    many = rows >= PACKED_ROWS
    packed = scores + rows * stride
    if many:
        _many_scores(
            marker, queries, rows, dim, keys, cell_bytes, size, step, tile, first, packed, scores - base * 4, stride
        )
    else:
        for block in range(first // size, last // size + 1):
            cells = min(size, last + 1 - block * size)
            place = keys + step.blocks[tile[c.TABLE] + block] * size * cell_bytes
            column = scores + (block * size - base) * 4
            dot(marker, queries, dim * 4, rows, place, cell_bytes, cells, column, stride, dim, 0, 0, 0)

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
    if many:
        _many_values(
            marker, scores - base * 4, stride, rows, dim, values, cell_bytes, size, step, tile, first, packed, results
        )
    else:
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
            weave(held, r[c.Y] + (tile[c.FIRST] + i) * r[c.Y_STRIDE] + kv_head * shared * dim * 4, shared * dim)


@compiled
def _cell_addresses(
    places: int, first: int, cells: int, keys: int, cell_bytes: int, size: int, step: Any, tile: Any
) -> None:
    """Where the keys (or values) of `cells` positions from `first` on are; then the last again, to a whole vector."""
    out = carray(integers_at(places), CELLS)
    for i in range(rounded(cells)):
        position = first + min(i, cells - 1)
        cell = step.blocks[tile[c.TABLE] + position // size] * size + position % size
        out[i] = keys + cell * cell_bytes


@compiled
def _many_scores(
    marker: Any,
    queries: int,
    rows: int,
    dim: int,
    keys: int,
    cell_bytes: int,
    size: int,
    step: Any,
    tile: Any,
    first: int,
    packed: int,
    scores: int,
    stride: int,
) -> None:
    """`scores`: where position 0 would be."""
    end = tile[c.START] + tile[c.COUNT]
    places = packed
    strips = places + 8 * CELLS
    groups = strips + packed_bytes(rows, dim)
    for row in range(0, rows, LANES):
        pack_strips(
            queries + row * dim * 4, dim * 4, min(LANES, rows - row), dim, strips + packed_bytes(row, dim), places
        )
    for position in range(first, end, CELLS):
        cells = min(CELLS, end - position)
        _cell_addresses(places, position, cells, keys, cell_bytes, size, step, tile)
        for cell in range(0, cells, LANES):
            pack_cells(marker, places + cell * 8, dim, groups + packed_bytes(cell, dim))
        multiply(strips, rows, groups, cells, scores + position * 4, stride, dim)


@compiled
def _many_values(
    marker: Any,
    weights: int,
    stride: int,
    rows: int,
    dim: int,
    values: int,
    cell_bytes: int,
    size: int,
    step: Any,
    tile: Any,
    first: int,
    packed: int,
    results: int,
) -> None:
    """`weights`: where that of position 0 would be."""
    end = tile[c.START] + tile[c.COUNT]
    panel = packed + 8 * CELLS
    places = carray(integers_at(packed), CELLS)
    for position in range(first, end, CELLS):
        cells = min(CELLS, end - position)
        _cell_addresses(packed, position, cells, values, cell_bytes, size, step, tile)
        for cell in range(cells):
            widen(marker, places[cell], panel + cell * dim * 4, dim)
        axpy_many(weights + position * 4, stride, rows, panel, dim * 4, results, dim * 4, dim, cells)
