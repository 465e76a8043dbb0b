"""Attention of prefill chunks, many queries of one sequence each, over the paged cache: the device's form.

    out[t, h] = sum_j softmax_j(s_j) v_j        over positions j <= t's own, and > its own - window with a window

    q      [tokens, heads, D]                       after RoPE; a view with any token stride
    cache  [blocks, block_tokens, 2, kv_heads, D]   one layer, this step's keys and values already written
    out    [tokens, heads, D]                       written where chunks lie, elsewhere left alone

A chunk's own keys and values are read from the cache like those before it, so a first chunk, a later one and one that
follows a cached prefix are the same case.

Tiling: a program takes TILE_QUERIES queries of one chunk and one head. Which ones is a list (`chunk_tiles`) that the
host makes with the batch, since it knows all lengths: no program is launched in vain, and those with the most cells to
read come first, so that the device does not wait for a late long one. Programs of one key/value head are neighbours and
find its cells in the second cache level. Cells that all queries of a tile see are walked without masks.

Hopper: with tiles of 64 rows Triton uses wgmma, and the softmax's result is its operand in registers. ptxas before 13.3
may reuse these registers while a pipelined wgmma still reads them, so there the loop has one stage and two or three
programs a processor hide each other's waits. Elsewhere the loop is pipelined.
"""

from collections.abc import Sequence
from typing import Any, Final, NamedTuple

import torch

from kernels.cell_scan import ScoreScales, scan_cells
from kernels.triton_jit import CompileCase, Number, Pointer, constexpr, jit, next_power_of_2, pointer, tl

TILE_QUERIES: Final = 64
_HOPPER: Final = 9


class Chunks(NamedTuple):
    """Chunks of consecutive queries; the numbers are the host's, on the device. All int32.

    tiles: [tiles, 2], chunk and first query of each tile of TILE_QUERIES queries, from `chunk_tiles`; a chunk of -1
        stands for no work.
    starts, counts: [chunks], the row of q with a chunk's first query, and how many it has.
    contexts: [chunks], how many positions the chunk's last query sees without a window, its own included.
    tables: [chunks, max_blocks], block numbers from position 0; what lies past the context is not read.
    """

    tiles: torch.Tensor
    starts: torch.Tensor
    counts: torch.Tensor
    contexts: torch.Tensor
    tables: torch.Tensor


def chunk_tiles(counts: Sequence[int], contexts: Sequence[int]) -> list[tuple[int, int]]:
    """(chunk, first query) of every tile, those that see most first."""
    tiles = [
        (contexts[chunk] - count + first, chunk, first)
        for chunk, count in enumerate(counts)
        for first in range(0, count, TILE_QUERIES)
    ]
    tiles.sort(key=lambda tile: -tile[0])
    return [(chunk, first) for _, chunk, first in tiles]


@jit
def _paged_prefill_kernel(
    q: Pointer,
    cache: Pointer,
    out: Pointer,
    tiles: Pointer,
    starts: Pointer,
    counts: Pointer,
    contexts: Pointer,
    tables: Pointer,
    q_stride: Number,
    out_stride: Number,
    block_stride: Number,
    table_stride: Number,
    window: Number,
    scale_before: Number,
    scale_after: Number,
    KV_HEADS: constexpr,
    GROUP: constexpr,
    DIM: constexpr,
    DIM_BLOCK: constexpr,
    BLOCK_TOKENS: constexpr,
    QUERIES: constexpr,
    TILE: constexpr,
    WINDOWED: constexpr,
    CAPPED: constexpr,
) -> None:
    head, tile = tl.program_id(0), tl.program_id(1)
    chunk = tl.load(tiles + 2 * tile)
    if chunk >= 0:
        skipped = tl.load(tiles + 2 * tile + 1)
        count = tl.load(counts + chunk)
        context = tl.load(contexts + chunk)
        index = skipped + tl.arange(0, QUERIES)
        dims = tl.arange(0, DIM_BLOCK)
        held = (index < count)[:, None] & (dims < DIM)[None, :]
        tokens = (tl.load(starts + chunk) + index).to(tl.int64)
        within = head * DIM + dims[None, :]
        queries = tl.load(q + tokens[:, None] * q_stride + within, mask=held, other=0.0)
        last = context - count + index
        first = last - window + 1
        earliest = context - count + skipped
        hi = tl.minimum(context, earliest + QUERIES)
        acc = tl.zeros([QUERIES, DIM_BLOCK], tl.float32)
        top = tl.full([QUERIES], float("-inf"), tl.float32)
        total = tl.zeros([QUERIES], tl.float32)
        table = tables + chunk.to(tl.int64) * table_stride
        keys = cache + (head // GROUP) * DIM
        token_stride: constexpr = 2 * KV_HEADS * DIM
        value_offset: constexpr = KV_HEADS * DIM
        if WINDOWED:
            lo = tl.maximum(earliest - window + 1, 0) // TILE * TILE
        else:
            lo = (earliest + 1) // TILE * TILE
            acc, top, total = scan_cells(
                acc, top, total, queries, first, last, 0, lo, table, keys, block_stride, token_stride, value_offset,
                scale_before, scale_after, BLOCK_TOKENS, TILE, DIM, DIM_BLOCK, False, False, CAPPED,
            )  # fmt: skip
        acc, top, total = scan_cells(
            acc, top, total, queries, first, last, lo, hi, table, keys, block_stride, token_stride, value_offset,
            scale_before, scale_after, BLOCK_TOKENS, TILE, DIM, DIM_BLOCK, True, WINDOWED, CAPPED,
        )  # fmt: skip
        # Queries past the chunk's end may see nothing; they are not stored.
        result = acc / tl.where(total == 0.0, 1.0, total)[:, None]
        tl.store(out + tokens[:, None] * out_stride + within, result.to(queries.dtype), mask=held)


def paged_prefill(
    q: torch.Tensor,
    cache: torch.Tensor,
    chunks: Chunks,
    out: torch.Tensor,
    window: int | None,
    scale: float,
    softcap: float | None,
) -> None:
    """Writes the chunks' part of out. Arguments have been checked (`device_attention.py`)."""
    heads, (block_tokens, _, kv_heads, dim) = q.shape[1], cache.shape[1:]
    major = torch.cuda.get_device_capability(q.device)[0] if q.is_cuda else _HOPPER
    constants, launch = _shape(heads, kv_heads, dim, block_tokens, q.dtype, major)
    _paged_prefill_kernel[(heads, chunks.tiles.shape[0])](
        q,
        cache,
        out,
        *chunks,
        q.stride(0),
        out.stride(0),
        cache.stride(0),
        chunks.tables.stride(0),
        0 if window is None else window,
        *ScoreScales.of(scale, softcap),
        **constants,
        WINDOWED=window is not None,
        CAPPED=softcap is not None,
        **launch,
    )


def _shape(
    heads: int, kv_heads: int, dim: int, block_tokens: int, dtype: torch.dtype, major: int
) -> tuple[dict[str, int], dict[str, Any]]:
    """Constants and launch options, for a device of compute capability `major`. The tiles are the largest that no
    register spills for."""
    dim_block = max(16, next_power_of_2(dim))
    tile, warps, stages = (32, 4, 2) if major != _HOPPER else (64, 4, 1)
    if dim_block > 128:
        tile, warps = 32, 8
    if dtype.itemsize > 2:  # plain fp32 dots hold their operands in registers
        tile, warps, stages = 16, 16, 1
    constants = {
        "KV_HEADS": kv_heads,
        "GROUP": heads // kv_heads,
        "DIM": dim,
        "DIM_BLOCK": dim_block,
        "BLOCK_TOKENS": block_tokens,
        "QUERIES": TILE_QUERIES,
        "TILE": tile,
    }
    return constants, {"num_warps": warps, "num_stages": stages}


def compile_cases() -> tuple[CompileCase, ...]:
    """Llama-2-7B, Llama-3-8B, Gemma-2-9B and others, as they are served on each architecture."""
    shapes = {
        "mha": (32, 32, 128, 16, torch.bfloat16, False, False),
        "gqa": (32, 8, 128, 32, torch.float16, False, False),
        "mistral": (32, 8, 128, 16, torch.bfloat16, True, False),
        "gemma": (16, 8, 256, 16, torch.bfloat16, True, True),
        "capped": (16, 8, 256, 16, torch.bfloat16, False, True),
        "capped128": (32, 16, 128, 16, torch.bfloat16, True, True),
        "odd": (32, 32, 80, 8, torch.bfloat16, False, False),
        "wide": (9, 3, 64, 64, torch.bfloat16, False, False),
        "fp32": (32, 8, 128, 16, torch.float32, False, False),
    }
    cases = []
    for arch in (80, 90):
        for name, (heads, kv_heads, dim, block_tokens, dtype, windowed, capped) in shapes.items():
            constants, launch = _shape(heads, kv_heads, dim, block_tokens, dtype, arch // 10)
            cases.append(
                CompileCase(
                    f"{name}-{arch}",
                    _paged_prefill_kernel,
                    {
                        **dict.fromkeys(("q", "cache", "out"), pointer(dtype)),
                        **dict.fromkeys(("tiles", "starts", "counts", "contexts", "tables"), "*i32"),
                        **dict.fromkeys(("q_stride", "out_stride", "block_stride", "table_stride", "window"), "i32"),
                        **dict.fromkeys(("scale_before", "scale_after"), "fp32"),
                    },
                    {**constants, "WINDOWED": windowed, "CAPPED": capped},
                    **launch,
                    divisible=frozenset({"q_stride", "out_stride", "block_stride"}),
                    tensor_cores="none" if dtype == torch.float32 else "wgmma",
                    archs=(arch,),
                )
            )
    return tuple(cases)
