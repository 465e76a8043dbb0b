"""The gated activation of the MLP: act(gate) * up, for SiLU (Llama, Mistral) and tanh-approximated GELU (Gemma).

y[t, i] = act(x[t, i]) * x[t, width + i]

x  [tokens, 2 * width]   gate | up, the output of the fused projection
"""

from typing import Literal

import torch

Activation = Literal["silu", "gelu_tanh"]


def gated_activation_reference(x: torch.Tensor, activation: Activation) -> torch.Tensor:
    gate, up = x.chunk(2, -1)
    if activation == "silu":
        return torch.nn.functional.silu(gate).mul_(up)
    return torch.nn.functional.gelu(gate, approximate="tanh").mul_(up)


def gated_activation(x: torch.Tensor, activation: Activation) -> torch.Tensor:
    """A new tensor [tokens, width] of x's dtype. Raises ValueError when x has an odd width."""
    if x.dim() != 2 or x.shape[1] % 2:
        raise ValueError(f"gated_activation: x {tuple(x.shape)}")
    return gated_activation_reference(x, activation)
