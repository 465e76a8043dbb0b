"""The gated activation of the MLP: act(gate) * up, for SiLU (Llama, Mistral) and tanh-approximated GELU (Gemma).

y[t, i] = act(x[t, i]) * x[t, width + i]

x  [tokens, 2 * width]   gate | up, the output of the fused projection

The kernel computes in fp32 and rounds once; the reference rounds the activation, too, as torch's own steps do. Tiling:
a program takes TILE neighbours of one row.
"""

from typing import Any, Final, Literal

import torch

from kernels.triton_jit import CompileCase, Number, Pointer, cdiv, constexpr, jit, pointer, runs_kernel, tl

TILE: Final = 1024
_WARPS: Final = 4
_DTYPES: Final = (torch.bfloat16, torch.float16, torch.float32)

Activation = Literal["silu", "gelu_tanh"]


def gated_activation_reference(x: torch.Tensor, activation: Activation) -> torch.Tensor:
    gate, up = x.chunk(2, -1)
    if activation == "silu":
        return torch.nn.functional.silu(gate).mul_(up)
    return torch.nn.functional.gelu(gate, approximate="tanh").mul_(up)


@jit
def _gated_activation_kernel(
    x: Pointer, y: Pointer, width: Number, x_stride: Number, TILE: constexpr, GELU: constexpr
) -> None:
    row = tl.program_id(0).to(tl.int64)
    at = tl.program_id(1) * TILE + tl.arange(0, TILE)
    held = at < width
    gate = tl.load(x + row * x_stride + at, mask=held, other=0.0).to(tl.float32)
    up = tl.load(x + row * x_stride + width + at, mask=held, other=0.0)
    if GELU:
        # (1 + tanh(z)) / 2 = sigmoid(2 z), with z = sqrt(2 / pi) (x + 0.044715 x^3)
        active = gate * tl.sigmoid(1.5957691216057308 * (gate + 0.044715 * gate * gate * gate))
    else:
        active = gate * tl.sigmoid(gate)
    tl.store(y + row * width + at, (active * up.to(tl.float32)).to(up.dtype), mask=held)


def gated_activation(x: torch.Tensor, activation: Activation) -> torch.Tensor:
    """A new tensor [tokens, width] of x's dtype. Raises ValueError when x has an odd width or gaps."""
    if x.dim() != 2 or x.shape[1] % 2:
        raise ValueError(f"gated_activation: x {tuple(x.shape)}")
    if not runs_kernel(x):
        return gated_activation_reference(x, activation)
    if x.dtype not in _DTYPES or x.stride(1) != 1:
        raise ValueError(f"gated_activation: x {x.dtype} {x.stride()}")
    tokens, width = x.shape[0], x.shape[1] // 2
    y = torch.empty((tokens, width), dtype=x.dtype, device=x.device)
    if tokens:
        grid = (tokens, cdiv(width, TILE))
        _gated_activation_kernel[grid](x, y, width, x.stride(0), **_constants(activation), num_warps=_WARPS)
    return y


def _constants(activation: Activation) -> dict[str, Any]:
    return {"TILE": TILE, "GELU": activation == "gelu_tanh"}


def compile_cases() -> tuple[CompileCase, ...]:
    """Both activations; widths are arguments."""
    cases: tuple[tuple[Activation, torch.dtype], ...] = (
        ("silu", torch.bfloat16), ("gelu_tanh", torch.bfloat16), ("silu", torch.float32))  # fmt: skip
    return tuple(
        CompileCase(
            f"{activation}-{dtype}",
            _gated_activation_kernel,
            {"x": pointer(dtype), "y": pointer(dtype), "width": "i32", "x_stride": "i32"},
            _constants(activation),
            num_warps=_WARPS,
            divisible=frozenset({"width", "x_stride"}),
        )
        for activation, dtype in cases
    )
