"""The gated activation of the MLP: act(gate) * up, for SiLU (Llama, Mistral) and tanh-approximated GELU (Gemma).

y[t, i] = act(x[t, i]) * x[t, width + i]

x      [tokens, 2 * width]   gate | up, the output of the fused projection
delta  like x                what is added to it first, where there is one; the sum is rounded

The kernel computes in fp32 and rounds once; the reference rounds the activation, too, as torch's own steps do. Tiling:
a program takes TILE neighbours of one row.
"""

from typing import Any, Final, Literal

import torch

from kernels.triton_jit import (
    CompileCase,
    Number,
    Pointer,
    cdiv,
    constexpr,
    jit,
    launches_early,
    pointer,
    runs_kernel,
    tl,
)

TILE: Final = 1024
_WARPS: Final = 4
_DTYPES: Final = (torch.bfloat16, torch.float16, torch.float32)

Activation = Literal["silu", "gelu_tanh"]


def gated_activation_reference(
    x: torch.Tensor, activation: Activation, delta: torch.Tensor | None = None
) -> torch.Tensor:
    if delta is not None:
        x = x + delta
    gate, up = x.chunk(2, -1)
    if activation == "silu":
        return torch.nn.functional.silu(gate).mul_(up)
    return torch.nn.functional.gelu(gate, approximate="tanh").mul_(up)


@jit
def _gated_activation_kernel(
    x: Pointer, delta: Pointer, y: Pointer, width: Number, x_stride: Number, delta_stride: Number,
    TILE: constexpr, GELU: constexpr, DELTA: constexpr, EARLY: constexpr,
) -> None:  # fmt: skip
    if EARLY:
        tl.extra.cuda.gdc_launch_dependents()
        tl.extra.cuda.gdc_wait()
    row = tl.program_id(0).to(tl.int64)
    at = tl.program_id(1) * TILE + tl.arange(0, TILE)
    held = at < width
    gate = tl.load(x + row * x_stride + at, mask=held, other=0.0).to(tl.float32)
    up = tl.load(x + row * x_stride + width + at, mask=held, other=0.0)
    if DELTA:
        delta += row * delta_stride + at
        gate = (gate + tl.load(delta, mask=held, other=0.0)).to(up.dtype).to(tl.float32)
        up = (up.to(tl.float32) + tl.load(delta + width, mask=held, other=0.0)).to(up.dtype)
    if GELU:
        # (1 + tanh(z)) / 2 = sigmoid(2 z), with z = sqrt(2 / pi) (x + 0.044715 x^3)
        active = gate * tl.sigmoid(1.5957691216057308 * (gate + 0.044715 * gate * gate * gate))
    else:
        active = gate * tl.sigmoid(gate)
    tl.store(y + row * width + at, (active * up.to(tl.float32)).to(up.dtype), mask=held)


def gated_activation(x: torch.Tensor, activation: Activation, delta: torch.Tensor | None = None) -> torch.Tensor:
    """A new tensor [tokens, width] of x's dtype. Raises ValueError when x has an odd width or gaps."""
    if x.dim() != 2 or x.shape[1] % 2:
        raise ValueError(f"gated_activation: x {tuple(x.shape)}")
    more = x if delta is None else delta
    if (more.shape, more.dtype, more.device) != (x.shape, x.dtype, x.device):
        raise ValueError(f"gated_activation: x {tuple(x.shape)} {x.dtype}, delta {tuple(more.shape)} {more.dtype}")
    if not runs_kernel(x):
        return gated_activation_reference(x, activation, delta)
    if x.dtype not in _DTYPES or x.stride(1) != 1 or more.stride(1) != 1:
        raise ValueError(f"gated_activation: x {x.dtype} {x.stride()}, delta {more.stride()}")
    tokens, width = x.shape[0], x.shape[1] // 2
    y = torch.empty((tokens, width), dtype=x.dtype, device=x.device)
    if tokens:
        grid = (tokens, cdiv(width, TILE))
        early = launches_early(x)
        _gated_activation_kernel[grid](
            x, more, y, width, x.stride(0), more.stride(0),
            **_constants(activation), DELTA=delta is not None, EARLY=early, num_warps=_WARPS, launch_pdl=early,
        )  # fmt: skip
    return y


def _constants(activation: Activation) -> dict[str, Any]:
    return {"TILE": TILE, "GELU": activation == "gelu_tanh"}


def compile_cases() -> tuple[CompileCase, ...]:
    """Both activations; widths are arguments."""
    cases: tuple[tuple[Activation, torch.dtype, bool], ...] = (
        ("silu", torch.bfloat16, False), ("gelu_tanh", torch.bfloat16, False), ("silu", torch.float32, False),
        ("silu", torch.bfloat16, True))  # fmt: skip
    return tuple(
        CompileCase(
            f"{activation}-{dtype}{'-early' if early else ''}",
            _gated_activation_kernel,
            {
                **dict.fromkeys(("x", "delta", "y"), pointer(dtype)),
                **dict.fromkeys(("width", "x_stride", "delta_stride"), "i32"),
            },
            {**_constants(activation), "DELTA": early, "EARLY": early},
            num_warps=_WARPS,
            divisible=frozenset({"width", "x_stride", "delta_stride"}),
            archs=(90,) if early else (80, 90),
        )
        for activation, dtype, early in cases
    )
