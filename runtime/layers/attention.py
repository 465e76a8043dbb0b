"""Self-attention of one layer over the paged cache."""

from dataclasses import dataclass

import torch

from kernels.paged_attention import paged_attention
from kernels.rope import rope_write_kv
from runtime.layers.linear import LoraLinear
from runtime.layers.step import StepInputs


@dataclass(frozen=True)
class Attention:
    """qkv and o are fused projections; cache is this layer's part of the KVCache."""

    qkv: LoraLinear
    o: LoraLinear
    cache: torch.Tensor
    num_heads: int

    def __call__(self, x: torch.Tensor, step: StepInputs) -> torch.Tensor:
        """[tokens, hidden] -> [tokens, hidden]; writes the step's keys and values."""
        qkv = self.qkv(x, step.lora)
        q = rope_write_kv(qkv, step.cos, step.sin, self.cache, step.places, self.num_heads)
        attended = paged_attention(q, self.cache, step.decode, step.prefill)
        return self.o(attended.view(x.shape[0], -1), step.lora)
