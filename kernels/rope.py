"""Rotary position embedding of q and k in place, and the write of k and v into the paged cache.

    pair (i, i + D/2) of each q and k head:   x_i' = x_i cos - x_{i+D/2} sin,  x_{i+D/2}' = x_{i+D/2} cos + x_i sin

    qkv      [tokens, (heads + 2 * kv_heads) * D]   q | k | v, the output of the fused projection; q and k change
    delta    like qkv                               what is added to it first, where there is one; the sum is rounded
    cos, sin [tokens, 1, D]                         fp32; `sin` is signed: its first half is negated (`rotary_table`)
    cache    [blocks, block_tokens, 2, kv_heads, D] one layer; k and v of a token lie together, so that one copy
                                                    writes both and one gather reads both
    places   [tokens] int64                         block * block_tokens + offset of each token; -1 writes nothing

The rotation runs in fp32 and is rounded once. Places must be distinct, but for -1, the padding of a captured graph.

Tiling: a program takes a few heads of one token, whichever of q, k and v they belong to, as two tiles [HEADS, D / 2] of
about 1024 elements: a pair lies in the same place of both. So one launch rotates and writes the cache.
"""

from typing import Final

import torch

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
    runs_kernel,
    tl,
)

TILE_PAIRS: Final = 1024
_WARPS: Final = 4
_DTYPES: Final = (torch.bfloat16, torch.float16, torch.float32)


def rotary_table(
    inverse_frequency: torch.Tensor, num_positions: int, amplitude: float = 1.0
) -> tuple[torch.Tensor, torch.Tensor]:
    """(cos, signed sin), each [num_positions, 1, D] fp32 and times `amplitude`, for frequencies [D/2]."""
    positions = torch.arange(num_positions, dtype=torch.float32, device=inverse_frequency.device)
    angles = positions[:, None] * inverse_frequency.float()
    cos, sin = angles.cos() * amplitude, angles.sin() * amplitude
    return torch.cat((cos, cos), -1).unsqueeze(1), torch.cat((-sin, sin), -1).unsqueeze(1)


def rope_write_kv_reference(
    qkv: torch.Tensor,
    cos: torch.Tensor,
    sin: torch.Tensor,
    cache: torch.Tensor,
    places: torch.Tensor,
    num_heads: int,
    delta: torch.Tensor | None = None,
) -> torch.Tensor:
    if delta is not None:
        qkv.add_(delta)
    _, _, _, kv_heads, dim = cache.shape
    tokens = qkv.shape[0]
    heads = qkv[:, : (num_heads + kv_heads) * dim].view(tokens, num_heads + kv_heads, dim)
    swapped = torch.roll(heads, dim // 2, -1)  # with the signed sine this is the "rotate half" of the formula
    heads.copy_((heads * cos).addcmul_(swapped.float(), sin))
    keys_values = qkv[:, num_heads * dim :].view(tokens, 2, kv_heads, dim)
    if tokens and int(places.min()) < 0:
        written = (places >= 0).nonzero()[:, 0]
        keys_values, places = keys_values[written], places[written]
    cache.view(-1, 2, kv_heads, dim).index_copy_(0, places, keys_values)
    return heads[:, :num_heads]


@jit
def _rope_write_kv_kernel(
    qkv: Pointer,
    delta: Pointer,
    cos: Pointer,
    sin: Pointer,
    cache: Pointer,
    places: Pointer,
    stride: Number,
    delta_stride: Number,
    HEADS: constexpr,
    KV_HEADS: constexpr,
    HALF: constexpr,
    HEADS_BLOCK: constexpr,
    HALF_BLOCK: constexpr,
    DELTA: constexpr,
    EARLY: constexpr,
) -> None:
    if EARLY:
        tl.extra.cuda.gdc_launch_dependents()
        tl.extra.cuda.gdc_wait()
    token = tl.program_id(0).to(tl.int64)
    heads = tl.program_id(1) * HEADS_BLOCK + tl.arange(0, HEADS_BLOCK)
    pairs = tl.arange(0, HALF_BLOCK)
    held = (heads < HEADS + 2 * KV_HEADS)[:, None] & (pairs < HALF)[None, :]
    within = heads[:, None] * (2 * HALF) + pairs[None, :]
    line = qkv + token * stride + within
    low = tl.load(line, mask=held, other=0.0)
    high = tl.load(line + HALF, mask=held, other=0.0)
    if DELTA:
        more = delta + token * delta_stride + within
        low = (low.to(tl.float32) + tl.load(more, mask=held, other=0.0)).to(low.dtype)
        high = (high.to(tl.float32) + tl.load(more + HALF, mask=held, other=0.0)).to(high.dtype)
    # Both halves of the tables say the same, the second half of `sin` without the sign.
    angle = token * (2 * HALF) + pairs
    cosine = tl.load(cos + angle, mask=pairs < HALF, other=0.0)[None, :]
    sine = tl.load(sin + angle + HALF, mask=pairs < HALF, other=0.0)[None, :]
    turns = (heads < HEADS + KV_HEADS)[:, None]
    wide_low, wide_high = low.to(tl.float32), high.to(tl.float32)
    new_low = tl.where(turns, (wide_low * cosine - wide_high * sine).to(low.dtype), low)
    new_high = tl.where(turns, (wide_high * cosine + wide_low * sine).to(low.dtype), high)
    tl.store(line, new_low, mask=held & turns)
    tl.store(line + HALF, new_high, mask=held & turns)
    place = tl.load(places + token)
    kept = held & (heads >= HEADS)[:, None] & (place >= 0)
    # k and v of a token lie together in the cache as they do in qkv.
    cell = cache + place * (4 * KV_HEADS * HALF) + within - HEADS * 2 * HALF
    tl.store(cell, new_low, mask=kept)
    tl.store(cell + HALF, new_high, mask=kept)


def rope_write_kv(
    qkv: torch.Tensor,
    cos: torch.Tensor,
    sin: torch.Tensor,
    cache: torch.Tensor,
    places: torch.Tensor,
    num_heads: int,
    delta: torch.Tensor | None = None,
) -> torch.Tensor:
    """Rotates q and k in place, writes k and v to the cache, returns q as a view [tokens, heads, D].

    Raises ValueError when arguments do not fit together.
    """
    tokens, (kv_heads, dim) = qkv.shape[0], cache.shape[3:]
    if qkv.shape[1] != (num_heads + 2 * kv_heads) * dim or qkv.dtype != cache.dtype or dim % 2:
        raise ValueError(f"rope: qkv {tuple(qkv.shape)} {qkv.dtype}, cache {tuple(cache.shape)} {cache.dtype}")
    if cos.shape != (tokens, 1, dim) or sin.shape != cos.shape or places.shape != (tokens,):
        raise ValueError(f"rope: {tokens} tokens, cos {tuple(cos.shape)}, places {tuple(places.shape)}")
    more = qkv if delta is None else delta
    if (more.shape, more.dtype, more.device) != (qkv.shape, qkv.dtype, qkv.device):
        raise ValueError(f"rope: qkv {tuple(qkv.shape)} {qkv.dtype}, delta {tuple(more.shape)} {more.dtype}")
    if not runs_kernel(qkv):
        return rope_write_kv_reference(qkv, cos, sin, cache, places, num_heads, delta)
    if qkv.dtype not in _DTYPES or (cos.dtype, sin.dtype, places.dtype) != (torch.float32, torch.float32, torch.int64):
        raise ValueError(f"rope: qkv {qkv.dtype}, cos {cos.dtype}, sin {sin.dtype}, places {places.dtype}")
    if (
        qkv.stride(1) != 1
        or more.stride(1) != 1
        or not all(tensor.is_contiguous() for tensor in (cos, sin, cache, places))
    ):
        raise ValueError(f"rope: qkv {qkv.stride()}, cos {cos.stride()}, cache {cache.stride()}: dense ones wanted")
    if any(tensor.device != qkv.device for tensor in (cos, sin, cache, places)):
        raise ValueError(f"rope: qkv on {qkv.device}, cache on {cache.device}, places on {places.device}")
    constants = _constants(num_heads, kv_heads, dim)
    if tokens:
        grid = (tokens, cdiv(num_heads + 2 * kv_heads, constants["HEADS_BLOCK"]))
        early = launches_early(qkv)
        _rope_write_kv_kernel[grid](
            qkv, more, cos, sin, cache, places, qkv.stride(0), more.stride(0),
            **constants, DELTA=delta is not None, EARLY=early, num_warps=_WARPS, launch_pdl=early,
        )  # fmt: skip
    return qkv[:, : num_heads * dim].view(tokens, num_heads, dim)


def _constants(heads: int, kv_heads: int, dim: int) -> dict[str, int]:
    half_block = next_power_of_2(dim // 2)
    block = max(1, min(next_power_of_2(heads + 2 * kv_heads), TILE_PAIRS // half_block))
    return {"HEADS": heads, "KV_HEADS": kv_heads, "HALF": dim // 2, "HEADS_BLOCK": block, "HALF_BLOCK": half_block}


def compile_cases() -> tuple[CompileCase, ...]:
    """Llama-3-8B, Gemma-2-9B and an odd one."""
    shapes = (
        (32, 8, 128, torch.bfloat16, False), (16, 8, 256, torch.float16, False), (32, 32, 80, torch.float32, False),
        (32, 8, 128, torch.bfloat16, True),
    )  # fmt: skip
    return tuple(
        CompileCase(
            f"{heads}-{kv_heads}x{dim}{'-early' if early else ''}",
            _rope_write_kv_kernel,
            {**dict.fromkeys(("qkv", "delta", "cache"), pointer(dtype)), "cos": "*fp32", "sin": "*fp32",
             "places": "*i64", "stride": "i32", "delta_stride": "i32"},
            {**_constants(heads, kv_heads, dim), "DELTA": early, "EARLY": early},
            num_warps=_WARPS,
            divisible=frozenset({"stride", "delta_stride"}),
            archs=(90,) if early else (80, 90),
        )
        for heads, kv_heads, dim, dtype, early in shapes
    )  # fmt: skip
