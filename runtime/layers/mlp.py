"""The gated MLP of one layer."""

from dataclasses import dataclass

import torch

from kernels.silu_mul import Activation, gated_activation
from runtime.layers.linear import LoraLinear
from runtime.layers.lora import LoraPlan


@dataclass(frozen=True)
class GatedMLP:
    """gate_up is fused: gate first."""

    gate_up: LoraLinear
    down: LoraLinear
    activation: Activation

    def __call__(self, x: torch.Tensor, lora: LoraPlan | None) -> torch.Tensor:
        """[tokens, hidden] -> [tokens, hidden]."""
        return self.down(gated_activation(self.gate_up(x, lora), self.activation), lora)
