"""A projection of one layer: the base's weight plus whatever the step's adapters add."""

from dataclasses import dataclass

import torch

from runtime.layers.lora import LoraPlan


@dataclass(frozen=True)
class LoraLinear:
    """weight [out, in] and bias [out], fused over the group's modules. `group` indexes `AdapterPool.groups`."""

    weight: torch.Tensor
    layer: int
    group: int
    bias: torch.Tensor | None = None

    def __call__(self, x: torch.Tensor, lora: LoraPlan | None) -> torch.Tensor:
        """[tokens, in] -> [tokens, out]."""
        y = torch.nn.functional.linear(x, self.weight, self.bias)
        if lora is not None:
            lora.add(self.layer, self.group, x, y)
        return y
