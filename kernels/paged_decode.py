"""Attention of decode rows, one query each, over the paged cache: the device's form. For CUDA graphs: nothing is read
on the host, the grid does not depend on contexts, and everything that changes lies in buffers that stay where they are.

    out[token, h] = sum_j softmax_j(s_j) v_j        over the last `window` of the positions 0 .. context - 1

    q      [tokens, heads, D]                       after RoPE; a view with any token stride
    cache  [blocks, block_tokens, 2, kv_heads, D]   one layer, this step's keys and values already written
    out    [tokens, heads, D]                       written at the rows' tokens; zeros where the context is 0 (padding)

Tiling: a program takes one row, one key/value head with all query heads that share it, and one split of the context.
The query heads are padded to the 16 rows of a tensor-core tile, which costs no memory traffic: the work is reading keys
and values, once. Cells are walked in tiles of 64 with a pipeline of asynchronous copies.

Splits: one row cannot fill a device, so its context is divided evenly among `splits` programs (`decode_splits`: fixed
by shapes). How many of them a row really uses depends on its context, on the device: short rows use fewer, and programs
without a share end at once. A row that uses one writes its result; else each leaves its part in scratch and takes a
ticket, and whoever takes the last one adds all parts up, in order. So it is one launch, and the same bits every time.
Scratch belongs to one stream; tickets are zero between launches.
"""

from typing import Final, NamedTuple

import torch

from kernels.cell_scan import ScoreScales, scan_cells
from kernels.triton_jit import (
    CompileCase,
    Number,
    Pointer,
    cdiv,
    constexpr,
    jit,
    launches_early,
    next_power_of_2,
    pointer,
    tl,
)

MAX_SPLITS: Final = 32
# Programs wanted per processor: fewer leave memory idle, more only add parts to be summed.
_PROGRAMS_PER_PROCESSOR: Final = 4
# A split below this many positions costs more than it saves.
_SPLIT_TOKENS: Final = 128
_TENSOR_CORE_ROWS: Final = 16
_WARPS: Final = 4
_STAGES: Final = 3


class DecodeScratch(NamedTuple):
    """Made by `make`; serves any step with at most its rows.

    parts: [rows, heads, splits, D] fp32; tops, totals: [rows, heads, splits] fp32; tickets: [rows, kv_heads] int32.
    """

    parts: torch.Tensor
    tops: torch.Tensor
    totals: torch.Tensor
    tickets: torch.Tensor

    @classmethod
    def make(
        cls, rows: int, heads: int, kv_heads: int, dim: int, splits: int, device: torch.device | str
    ) -> "DecodeScratch":
        """`splits` is a power of two, at most MAX_SPLITS. Raises ValueError."""
        if splits not in (1, 2, 4, 8, 16, 32):
            raise ValueError(f"paged_decode: {splits} splits: allowed are powers of two up to {MAX_SPLITS}")
        lines = (rows, heads, splits)
        return cls(
            torch.empty((*lines, dim), dtype=torch.float32, device=device),
            torch.empty(lines, dtype=torch.float32, device=device),
            torch.empty(lines, dtype=torch.float32, device=device),
            torch.zeros((rows, kv_heads), dtype=torch.int32, device=device),
        )


class DecodeRows(NamedTuple):
    """Rows with one query each.

    contexts: [rows] int32, how many positions the query sees without a window, its own included; 0 for padding.
    tables: [rows, max_blocks] int32, block numbers from position 0; what lies past the context is not read.
    tokens: [rows] int32, which rows of q; None when row i is token i.
    """

    contexts: torch.Tensor
    tables: torch.Tensor
    tokens: torch.Tensor | None
    scratch: DecodeScratch


def decode_splits(rows: int, kv_heads: int, max_context: int, processors: int) -> int:
    """Into how many programs a row's context is divided, from what is known when a graph is captured."""
    wanted = _PROGRAMS_PER_PROCESSOR * processors // max(1, rows * kv_heads)
    splits = min(MAX_SPLITS, next_power_of_2(cdiv(max_context, _SPLIT_TOKENS)))
    while splits > 1 and splits > wanted:
        splits //= 2
    return splits


@jit
def _paged_decode_kernel(
    q: Pointer,
    cache: Pointer,
    out: Pointer,
    contexts: Pointer,
    tables: Pointer,
    tokens: Pointer,
    parts: Pointer,
    tops: Pointer,
    totals: Pointer,
    tickets: Pointer,
    q_stride: Number,
    out_stride: Number,
    block_stride: Number,
    table_stride: Number,
    window: Number,
    scale_before: Number,
    scale_after: Number,
    KV_HEADS: constexpr,
    GROUP: constexpr,
    GROUP_BLOCK: constexpr,
    DIM: constexpr,
    DIM_BLOCK: constexpr,
    BLOCK_TOKENS: constexpr,
    TILE: constexpr,
    SPLITS: constexpr,
    INDEXED: constexpr,
    WINDOWED: constexpr,
    CAPPED: constexpr,
    EARLY: constexpr,
) -> None:
    if EARLY:
        tl.extra.cuda.gdc_wait()
    kv_head, split, row = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    context = tl.load(contexts + row)
    token = row.to(tl.int64)
    if INDEXED:
        token = tl.load(tokens + row).to(tl.int64)
    begin = 0
    if WINDOWED:
        begin = tl.maximum(context - window, 0)
    share = tl.maximum(tl.cdiv(tl.cdiv(context - begin, SPLITS), TILE), 1) * TILE
    used = tl.maximum(tl.cdiv(context - begin, share), 1)
    if split < used:
        lo = begin + split * share
        hi = tl.minimum(lo + share, context)
        members = tl.arange(0, GROUP_BLOCK)
        dims = tl.arange(0, DIM_BLOCK)
        held = (members < GROUP)[:, None] & (dims < DIM)[None, :]
        head = kv_head * GROUP + members
        within = head[:, None] * DIM + dims[None, :]
        queries = tl.load(q + token * q_stride + within, mask=held, other=0.0)
        acc = tl.zeros([GROUP_BLOCK, DIM_BLOCK], tl.float32)
        top = tl.full([GROUP_BLOCK], float("-inf"), tl.float32)
        total = tl.zeros([GROUP_BLOCK], tl.float32)
        last = tl.zeros([GROUP_BLOCK], tl.int32) + context
        table = tables + row.to(tl.int64) * table_stride
        keys = cache + kv_head * DIM
        token_stride: constexpr = 2 * KV_HEADS * DIM
        value_offset: constexpr = KV_HEADS * DIM
        whole = lo + tl.maximum(hi - lo, 0) // TILE * TILE
        acc, top, total = scan_cells(
            acc, top, total, queries, last, last, lo, whole, table, keys, block_stride, token_stride, value_offset,
            scale_before, scale_after, BLOCK_TOKENS, TILE, DIM, DIM_BLOCK, False, False, CAPPED,
        )  # fmt: skip
        acc, top, total = scan_cells(
            acc, top, total, queries, last, last, whole, hi, table, keys, block_stride, token_stride, value_offset,
            scale_before, scale_after, BLOCK_TOKENS, TILE, DIM, DIM_BLOCK, True, False, CAPPED,
        )  # fmt: skip
        if used == 1:
            safe = tl.where(total == 0.0, 1.0, total)
            tl.store(out + token * out_stride + within, (acc / safe[:, None]).to(queries.dtype), mask=held)
        else:
            line = (row.to(tl.int64) * (KV_HEADS * GROUP) + head) * SPLITS + split
            tl.store(parts + line[:, None] * DIM + dims[None, :], acc, mask=held)
            tl.store(tops + line, top, mask=members < GROUP)
            tl.store(totals + line, total, mask=members < GROUP)
            # All threads' stores come before this thread's ticket, and the ticket before what the last one reads.
            tl.debug_barrier()
            ticket = tickets + row * KV_HEADS + kv_head
            if tl.atomic_add(ticket, 1, sem="acq_rel", scope="gpu") == used - 1:
                each = tl.arange(0, SPLITS)
                taken = each < used
                for member in tl.static_range(GROUP):
                    lines = (row.to(tl.int64) * (KV_HEADS * GROUP) + kv_head * GROUP + member) * SPLITS + each
                    # Past the first cache level, which other programs' stores do not reach.
                    heights = tl.load(tops + lines, mask=taken, other=float("-inf"), cache_modifier=".cg")
                    sums = tl.load(totals + lines, mask=taken, other=0.0, cache_modifier=".cg")
                    part = tl.load(
                        parts + lines[:, None] * DIM + dims[None, :],
                        mask=taken[:, None] & (dims < DIM)[None, :],
                        other=0.0,
                        cache_modifier=".cg",
                    )
                    weights = tl.exp2(heights - tl.max(heights, 0))
                    merged = tl.sum(part * weights[:, None], 0) / tl.sum(sums * weights, 0)
                    place = out + token * out_stride + (kv_head * GROUP + member) * DIM + dims
                    tl.store(place, merged.to(queries.dtype), mask=dims < DIM)
                tl.store(ticket, 0)


def paged_decode(
    q: torch.Tensor,
    cache: torch.Tensor,
    rows: DecodeRows,
    out: torch.Tensor,
    window: int | None,
    scale: float,
    softcap: float | None,
) -> None:
    """Writes the rows' part of out. Arguments have been checked (`device_attention.py`)."""
    heads, (block_tokens, _, kv_heads, dim) = q.shape[1], cache.shape[1:]
    scales, scratch = ScoreScales.of(scale, softcap), rows.scratch
    constants = _constants(heads, kv_heads, dim, block_tokens, scratch.tops.shape[2], q.dtype)
    _paged_decode_kernel[(kv_heads, constants["SPLITS"], rows.contexts.shape[0])](
        q,
        cache,
        out,
        rows.contexts,
        rows.tables,
        rows.contexts if rows.tokens is None else rows.tokens,
        *scratch,
        q.stride(0),
        out.stride(0),
        cache.stride(0),
        rows.tables.stride(0),
        0 if window is None else window,
        *scales,
        **constants,
        INDEXED=rows.tokens is not None,
        WINDOWED=window is not None,
        CAPPED=softcap is not None,
        EARLY=launches_early(q),
        num_warps=_WARPS,
        num_stages=_STAGES,
        launch_pdl=launches_early(q),
    )


def _constants(
    heads: int, kv_heads: int, dim: int, block_tokens: int, splits: int, dtype: torch.dtype
) -> dict[str, int]:
    dim_block = max(_TENSOR_CORE_ROWS, next_power_of_2(dim))
    return {
        "KV_HEADS": kv_heads,
        "GROUP": heads // kv_heads,
        "GROUP_BLOCK": max(_TENSOR_CORE_ROWS, next_power_of_2(heads // kv_heads)),
        "DIM": dim,
        "DIM_BLOCK": dim_block,
        "BLOCK_TOKENS": block_tokens,
        # 16 KB of keys a tile in 16 bits: three stages of keys and values leave room for a second program. Plain fp32
        # dots hold both operands in registers.
        "TILE": max(16, min(64, (16384 if dtype.itemsize == 2 else 8192) // (dim_block * dtype.itemsize))),
        "SPLITS": splits,
    }


def compile_cases() -> tuple[CompileCase, ...]:
    """Llama-2-7B, Llama-3-8B, Gemma-2-9B and a small one, as they are served."""
    shapes = {
        "mha": (32, 32, 128, 16, 8, torch.bfloat16, False, False),
        "early": (32, 32, 128, 16, 8, torch.bfloat16, False, False),
        "gqa": (32, 8, 128, 16, 16, torch.bfloat16, False, False),
        "unsplit": (32, 8, 128, 32, 1, torch.float16, False, False),
        "gemma": (16, 8, 256, 16, 32, torch.bfloat16, True, True),
        "odd": (32, 32, 80, 8, 8, torch.bfloat16, True, False),
        "wide": (9, 3, 64, 64, 32, torch.bfloat16, False, False),
        "fp32": (32, 8, 128, 16, 8, torch.float32, False, False),
    }
    return tuple(
        CompileCase(
            name,
            _paged_decode_kernel,
            {
                **dict.fromkeys(("q", "cache", "out"), pointer(dtype)),
                **dict.fromkeys(("contexts", "tables", "tokens", "tickets"), "*i32"),
                **dict.fromkeys(("parts", "tops", "totals"), "*fp32"),
                **dict.fromkeys(("q_stride", "out_stride", "block_stride", "table_stride", "window"), "i32"),
                **dict.fromkeys(("scale_before", "scale_after"), "fp32"),
            },
            {
                **_constants(heads, kv_heads, dim, block_tokens, splits, dtype),
                "INDEXED": False,
                "WINDOWED": windowed,
                "CAPPED": capped,
                "EARLY": name == "early",
            },
            num_warps=_WARPS,
            num_stages=_STAGES,
            divisible=frozenset({"q_stride", "out_stride", "block_stride"}),
            tensor_cores="none" if dtype == torch.float32 else "mma",
            archs=(90,) if name == "early" else (80, 90),
        )
        for name, (heads, kv_heads, dim, block_tokens, splits, dtype, windowed, capped) in shapes.items()
    )
