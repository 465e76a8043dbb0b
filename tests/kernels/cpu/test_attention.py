"""Attention over tiles of a prompt: the bits of single queries, whatever lies in the cells that nobody may read."""

from typing import Any

import numpy as np
import pytest
import torch

from kernels.cpu import records as c
from kernels.cpu.attention import LEAST_ROWS, PACKED_ROWS, TILE_ROWS, attend, scratch_bytes, tile_tokens
from kernels.cpu.team import FIELDS
from kernels.cpu.vectors import KINDS
from tests.kernels.cpu.test_rows import DTYPES, NAN, woven

Tile = tuple[int, int, int, int]


class Prompt:
    """`tokens` queries at the end of `context` positions, whose keys and values lie in shuffled blocks.

    Cells behind the last position, and blocks of nobody, are NaN; so is what follows the scratch.
    """

    def __init__(
        self, dtype: str, heads: tuple[int, int], dim: int, context: int, tokens: int, size: int, seed: int = 1
    ) -> None:
        self.dtype, self.heads, self.dim, self.size, self.tokens = dtype, heads, dim, size, tokens
        self.start = context - tokens
        random = torch.Generator().manual_seed(seed)
        self.x = torch.randn(tokens, heads[0] * dim, generator=random)
        blocks = -(-context // size)
        order = torch.randperm(blocks + 3, generator=random)[:blocks]
        self.cache = torch.full((blocks + 3, size, 2, heads[1], dim), NAN, dtype=DTYPES[dtype])
        cells = torch.randn(context, 2, heads[1], dim, generator=random).to(DTYPES[dtype])
        for position in range(context):
            self.cache[order[position // size], position % size] = cells[position]
        self.blocks = order.numpy().astype(np.int64)
        needed = scratch_bytes(*heads, dim, context)
        self.scratch = torch.full((-(-needed // 4) + 64,), NAN)
        self.guard = -(-needed // 4)

    def attended(self, tiles: list[Tile], window: int = 0, soft_cap: float = 0.0) -> torch.Tensor:
        y = torch.full((self.tokens, self.heads[0] * self.dim), NAN)
        columns = {
            c.X: self.x.data_ptr(), c.X_STRIDE: self.x.stride(0) * 4, c.Y: y.data_ptr(), c.Y_STRIDE: y.stride(0) * 4,
            c.NUM_HEADS: self.heads[0], c.KV_HEADS: self.heads[1], c.HEAD_DIM: self.dim, c.BLOCK_TOKENS: self.size,
            c.CACHE: self.cache.data_ptr(), c.WINDOW: window,
        }  # fmt: skip
        program = c.program([(columns, {c.SCALE: self.dim**-0.5, c.SOFT_CAP: soft_cap})])
        nothing: Any = np.zeros(0, np.int64)
        step = c.Step(np.zeros((0, 4), np.int64), np.array(tiles, np.int64), self.blocks, nothing, nothing, nothing)
        control = np.zeros(FIELDS, np.int64)
        attend(
            *KINDS[self.dtype], program.records[0], program.numbers[0], step, control.ctypes.data,
            self.scratch.data_ptr(),
        )  # fmt: skip
        assert bool(self.scratch[self.guard :].isnan().all())
        return y

    def tiles(self, most: int) -> list[Tile]:
        return [(first, min(most, self.tokens - first), self.start + first, 0) for first in range(0, self.tokens, most)]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("heads", "dim", "size"), [((9, 3), 64, 16), ((4, 4), 80, 8), ((6, 1), 33, 5), ((2, 2), 128, 64), ((40, 1), 16, 1)]
)
def test_a_query_has_the_same_bits_in_any_tile(dtype: str, heads: tuple[int, int], dim: int, size: int) -> None:
    prompt = Prompt(dtype, heads, dim, context=211, tokens=75, size=size)
    most = tile_tokens(*heads, 211)
    assert most * heads[0] // heads[1] >= PACKED_ROWS
    alone = prompt.attended(prompt.tiles(1))
    assert bool(alone.isfinite().all())
    for tokens in {most, min(7, most), min(2, most)}:
        assert torch.equal(prompt.attended(prompt.tiles(tokens)), alone)


@pytest.mark.parametrize(("window", "soft_cap"), [(50, 0.0), (0, 2.0), (17, 5.0), (1, 0.0)])
def test_windows_and_soft_caps(window: int, soft_cap: float) -> None:
    prompt = Prompt("bfloat16", (8, 2), 64, context=301, tokens=130, size=16)
    if window:  # the blocks that no query sees have long been given away
        prompt.cache[prompt.blocks[: (prompt.start - window + 1) // 16]] = NAN
    alone = prompt.attended(prompt.tiles(1), window, soft_cap)
    assert bool(alone.isfinite().all())
    assert torch.equal(prompt.attended(prompt.tiles(tile_tokens(8, 2, 301)), window, soft_cap), alone)


@pytest.mark.parametrize("dtype", DTYPES)
def test_it_is_attention(dtype: str) -> None:
    """In the order in which the projection behind it reads."""
    prompt = Prompt(dtype, (9, 3), 64, context=200, tokens=200, size=16)
    found = prompt.attended(prompt.tiles(tile_tokens(9, 3, 200)))
    cells = torch.stack([prompt.cache[prompt.blocks[p // 16], p % 16] for p in range(200)]).double()
    keys, values = (cells[:, part].repeat_interleave(3, 1).transpose(0, 1) for part in (0, 1))
    queries = prompt.x.view(200, 9, 64).transpose(0, 1).double()
    wanted = torch.nn.functional.scaled_dot_product_attention(queries[None], keys[None], values[None], is_causal=True)
    assert (found - woven(wanted[0].transpose(0, 1).reshape(200, -1), dtype)).abs().max() <= 1e-5


@pytest.mark.parametrize("heads", [(9, 3), (14, 2), (32, 32), (71, 1)])
def test_tiles_of_long_contexts_are_lower_and_their_scores_bounded(heads: tuple[int, int]) -> None:
    shared = heads[0] // heads[1]
    rows = [tile_tokens(*heads, context) * shared for context in (1, 1000, 20_000, 40_000, 1_000_000)]
    assert rows == sorted(rows, reverse=True)
    assert max(rows) <= max(TILE_ROWS, shared)
    assert rows[-1] <= max(LEAST_ROWS, shared)
    assert scratch_bytes(*heads, 64, 20_000) <= max(8 << 20, shared * 20_000 * 4 + (1 << 20))
