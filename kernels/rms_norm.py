"""Root-mean-square norm over the last dimension, in fp32 whatever the dtype of x; optionally after a residual sum.

    y[t, i] = s[t, i] / sqrt(mean_i(s[t, i]^2) + eps) * weight[i]       s = x, or residual + x, kept in `residual`;
                                                                        delta is added to x first, where there is one

    x, delta  [tokens, hidden]
    residual  [tokens, hidden], x's dtype; becomes the sum, rounded once
    weight    [hidden], x's dtype or fp32. Gemma multiplies by (1 + w): its loader adds the 1 and keeps fp32.

The result is rounded to x's dtype once, after the weight. With a residual the norm is that of the rounded sum, and x +
delta is rounded, so all steps in one give the same as one after the other; what is saved is launches and passes over
memory.

Tiling: a program takes one row and holds it in registers, so that it is read once. The sum's order depends on the width
alone.
"""

from typing import Final

import torch

from kernels.triton_jit import (
    CompileCase,
    Number,
    Pointer,
    constexpr,
    jit,
    launches_early,
    next_power_of_2,
    pointer,
    runs_kernel,
    tl,
)

MAX_WIDTH: Final = 1 << 16
_DTYPES: Final = (torch.bfloat16, torch.float16, torch.float32)


def rms_norm_reference(
    x: torch.Tensor,
    weight: torch.Tensor,
    eps: float,
    residual: torch.Tensor | None = None,
    delta: torch.Tensor | None = None,
) -> torch.Tensor:
    if delta is not None:
        x = x + delta
    if residual is not None:
        x = residual.add_(x)
    if weight.dtype == x.dtype:
        return torch.nn.functional.rms_norm(x, weight.shape, weight, eps)  # computes in fp32 inside, rounds once
    return torch.nn.functional.rms_norm(x.float(), weight.shape, weight, eps).to(x.dtype)


@jit
def _rms_norm_kernel(
    x: Pointer,
    delta: Pointer,
    residual: Pointer,
    weight: Pointer,
    y: Pointer,
    eps: Number,
    x_stride: Number,
    delta_stride: Number,
    residual_stride: Number,
    WIDTH: constexpr,
    BLOCK: constexpr,
    ADDS: constexpr,
    DELTA: constexpr,
    EARLY: constexpr,
) -> None:
    row = tl.program_id(0).to(tl.int64)
    at = tl.arange(0, BLOCK)
    held = at < WIDTH
    factors = tl.load(weight + at, mask=held, other=0.0).to(tl.float32)
    if EARLY:
        tl.extra.cuda.gdc_launch_dependents()
        tl.extra.cuda.gdc_wait()
    values = tl.load(x + row * x_stride + at, mask=held, other=0.0)
    if DELTA:
        values = (values.to(tl.float32) + tl.load(delta + row * delta_stride + at, mask=held, other=0.0)).to(
            values.dtype
        )
    if ADDS:
        place = residual + row * residual_stride + at
        values = (values.to(tl.float32) + tl.load(place, mask=held, other=0.0).to(tl.float32)).to(values.dtype)
        tl.store(place, values, mask=held)
    wide = values.to(tl.float32)
    scale = 1.0 / tl.sqrt_rn(tl.sum(wide * wide, 0) / WIDTH + eps)
    scaled = wide * scale * factors
    tl.store(y + row * WIDTH + at, scaled.to(values.dtype), mask=held)


def rms_norm(
    x: torch.Tensor,
    weight: torch.Tensor,
    eps: float,
    residual: torch.Tensor | None = None,
    delta: torch.Tensor | None = None,
) -> torch.Tensor:
    """A new tensor of x's shape and dtype; `residual` is changed. Raises ValueError when arguments do not fit."""
    if weight.shape != x.shape[-1:] or weight.dtype not in (x.dtype, torch.float32) or weight.device != x.device:
        raise ValueError(f"rms_norm: x {tuple(x.shape)} {x.dtype}, weight {tuple(weight.shape)} {weight.dtype}")
    for name, other in (("residual", residual), ("delta", delta)):
        if other is not None and (other.shape, other.dtype, other.device) != (x.shape, x.dtype, x.device):
            raise ValueError(f"rms_norm: x {tuple(x.shape)} {x.dtype}, {name} {tuple(other.shape)} {other.dtype}")
    if not runs_kernel(x):
        return rms_norm_reference(x, weight, eps, residual, delta)
    beside, more = (x if other is None else other for other in (residual, delta))
    if x.dim() != 2 or x.shape[1] > MAX_WIDTH or x.dtype not in _DTYPES:
        raise ValueError(f"rms_norm: x {tuple(x.shape)} {x.dtype}: at most {MAX_WIDTH} wide, two dimensions")
    if x.stride(1) != 1 or beside.stride(1) != 1 or more.stride(1) != 1 or weight.stride(0) != 1:
        raise ValueError(f"rms_norm: x {x.stride()}, residual {beside.stride()}, weight {weight.stride()}: dense rows")
    y = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    if x.shape[0]:
        _rms_norm_kernel[(x.shape[0],)](
            x,
            more,
            beside,
            weight,
            y,
            eps,
            x.stride(0),
            more.stride(0),
            beside.stride(0),
            WIDTH=x.shape[1],
            BLOCK=next_power_of_2(x.shape[1]),
            ADDS=residual is not None,
            DELTA=delta is not None,
            EARLY=launches_early(x),
            num_warps=_warps(x.shape[1]),
            launch_pdl=launches_early(x),
        )
    return y


def _warps(width: int) -> int:
    """About 16 elements a thread, which is two loads of 16 bytes."""
    return max(1, min(16, next_power_of_2(width) // 512))


def compile_cases() -> tuple[CompileCase, ...]:
    """Widths of Llama, Gemma and the largest models."""
    shapes = (
        (4096, torch.bfloat16, torch.bfloat16),
        (3584, torch.float16, torch.float32),
        (16384, torch.bfloat16, torch.bfloat16),
    )
    return tuple(
        CompileCase(
            f"{width}-{dtype}-{'added' if adds else 'plain'}{'-early' if early else ''}",
            _rms_norm_kernel,
            {
                **dict.fromkeys(("x", "delta", "residual", "y"), pointer(dtype)),
                "weight": pointer(weight),
                "eps": "fp32",
                **dict.fromkeys(("x_stride", "delta_stride", "residual_stride"), "i32"),
            },
            {"WIDTH": width, "BLOCK": next_power_of_2(width), "ADDS": adds, "DELTA": early, "EARLY": early},
            num_warps=_warps(width),
            divisible=frozenset({"x_stride", "delta_stride", "residual_stride"}),
            archs=(90,) if early else (80, 90),
        )
        for width, dtype, weight in shapes
        for adds, early in ((False, False), (True, False), (True, True))
    )
