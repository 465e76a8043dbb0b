"""Self-attention of one layer over the paged cache."""

from dataclasses import dataclass

import torch

from kernels.head_norm import head_norm_
from kernels.paged_attention import paged_attention
from kernels.rope import rope_write_kv
from runtime.layers.linear import LoraLinear
from runtime.layers.step import StepInputs


@dataclass(frozen=True)
class Attention:
    """qkv and o are fused projections; cache is this layer's part of the KVCache; kind indexes `StepInputs.views`.

    qk_norm: [heads + kv_heads, head_dim] weights of the norms of q and k (the family's offset included), or None.
    scale, softcap: see `kernels/paged_attention.py`.
    """

    qkv: LoraLinear
    o: LoraLinear
    cache: torch.Tensor
    num_heads: int
    kind: int
    qk_norm: torch.Tensor | None
    norm_eps: float
    scale: float | None
    softcap: float | None

    def __call__(self, x: torch.Tensor, step: StepInputs) -> torch.Tensor:
        """[tokens, hidden] -> [tokens, hidden]; writes the step's keys and values."""
        view = step.views[self.kind]
        qkv = self.qkv(x, step.lora)
        if self.qk_norm is not None:
            head_norm_(qkv, self.qk_norm, self.norm_eps)
        q = rope_write_kv(qkv, view.cos, view.sin, self.cache, step.places, self.num_heads)
        attended = paged_attention(q, self.cache, view.decode, view.prefill, self.scale, self.softcap)
        return self.o(attended.view(x.shape[0], -1), step.lora)
