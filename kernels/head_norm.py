"""Root-mean-square norm of every head of q and k, in place, on the output of the fused projection.

    x[t, h, i] = x[t, h, i] / sqrt(mean_i(x[t, h, i]^2) + eps) * weight[h, i]       for the first heads of qkv

    qkv     [tokens, (heads + 2 * kv_heads) * D]    q | k | v; v stays as it is
    weight  [heads + kv_heads, D]                   qkv's dtype or fp32; q's weights, then k's

Computed in fp32 and rounded once. Tiling: a program takes a few heads of one token, a tile [HEADS, D] of about 2048
elements, and writes over what it read.
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

TILE_ELEMENTS: Final = 2048
_WARPS: Final = 4


def head_norm_reference_(qkv: torch.Tensor, weight: torch.Tensor, eps: float) -> None:
    heads, dim = weight.shape
    x = qkv[:, : heads * dim].view(-1, heads, dim)
    x.copy_(torch.nn.functional.rms_norm(x.float(), (dim,), None, eps).mul_(weight))


@jit
def _head_norm_kernel(
    qkv: Pointer,
    weight: Pointer,
    eps: Number,
    stride: Number,
    HEADS: constexpr,
    DIM: constexpr,
    HEADS_BLOCK: constexpr,
    DIM_BLOCK: constexpr,
    EARLY: constexpr,
) -> None:
    if EARLY:
        tl.extra.cuda.gdc_launch_dependents()
        tl.extra.cuda.gdc_wait()
    token = tl.program_id(0).to(tl.int64)
    heads = tl.program_id(1) * HEADS_BLOCK + tl.arange(0, HEADS_BLOCK)
    dims = tl.arange(0, DIM_BLOCK)
    held = (heads < HEADS)[:, None] & (dims < DIM)[None, :]
    within = heads[:, None] * DIM + dims[None, :]
    values = tl.load(qkv + token * stride + within, mask=held, other=0.0)
    wide = values.to(tl.float32)
    scale = 1.0 / tl.sqrt_rn(tl.sum(wide * wide, 1) / DIM + eps)
    scaled = wide * scale[:, None] * tl.load(weight + within, mask=held, other=0.0).to(tl.float32)
    tl.store(qkv + token * stride + within, scaled.to(values.dtype), mask=held)


def head_norm_(qkv: torch.Tensor, weight: torch.Tensor, eps: float) -> None:
    """Changes qkv. Raises ValueError when arguments do not fit."""
    if qkv.dim() != 2 or qkv.shape[1] <= weight.numel() or weight.dtype not in (qkv.dtype, torch.float32):
        raise ValueError(f"head_norm: qkv {tuple(qkv.shape)} {qkv.dtype}, weight {tuple(weight.shape)} {weight.dtype}")
    if not runs_kernel(qkv):
        head_norm_reference_(qkv, weight, eps)
        return
    if qkv.stride(1) != 1 or not weight.is_contiguous() or weight.device != qkv.device:
        raise ValueError(f"head_norm: qkv {qkv.stride()} on {qkv.device}, weight {weight.stride()} on {weight.device}")
    constants = _constants(*weight.shape)
    if qkv.shape[0]:
        grid = (qkv.shape[0], cdiv(weight.shape[0], constants["HEADS_BLOCK"]))
        early = launches_early(qkv)
        _head_norm_kernel[grid](
            qkv, weight, eps, qkv.stride(0), **constants, EARLY=early, num_warps=_WARPS, launch_pdl=early
        )


def _constants(heads: int, dim: int) -> dict[str, int]:
    dim_block = next_power_of_2(dim)
    block = max(1, min(next_power_of_2(heads), TILE_ELEMENTS // dim_block))
    return {"HEADS": heads, "DIM": dim, "HEADS_BLOCK": block, "DIM_BLOCK": dim_block}


def compile_cases() -> tuple[CompileCase, ...]:
    """Qwen3 and Gemma 3."""
    return tuple(
        CompileCase(
            f"{heads}x{dim}{'-early' if early else ''}",
            _head_norm_kernel,
            {"qkv": pointer(torch.bfloat16), "weight": pointer(weight), "eps": "fp32", "stride": "i32"},
            {**_constants(heads, dim), "EARLY": early},
            num_warps=_WARPS,
            divisible=frozenset({"stride"}),
            archs=(90,) if early else (80, 90),
        )
        for heads, dim, weight, early in (
            (40, 128, torch.bfloat16, False),
            (24, 256, torch.float32, False),
            (40, 128, torch.bfloat16, True),
        )
    )
