"""A projection of one layer: the base's weight plus whatever the step's adapters add."""

from dataclasses import dataclass

import torch

from kernels.linear import LinearWeight
from runtime.layers.lora import LoraPlan


@dataclass(frozen=True)
class LoraLinear:
    """weight [out, in] and bias [out], fused over the group's modules. `group` indexes `AdapterPool.groups`."""

    weight: LinearWeight
    layer: int
    group: int
    num_slices: int
    bias: torch.Tensor | None = None

    def __call__(self, x: torch.Tensor, lora: LoraPlan | None) -> torch.Tensor:
        """[tokens, in] -> [tokens, out]."""
        y = self.weight(x, self.bias)
        return y if lora is None else lora.add(self.layer, self.group, self.num_slices, x, y)
