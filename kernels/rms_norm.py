"""Root-mean-square norm over the last dimension, in fp32 whatever the dtype of x.

    y[t, i] = x[t, i] / sqrt(mean_i(x[t, i]^2) + eps) * weight[i]

    x       [tokens, hidden]
    weight  [hidden], x's dtype or fp32. Gemma multiplies by (1 + w): its loader adds the 1 and keeps fp32.

The result is rounded to x's dtype once, after the weight.
"""

import torch


def rms_norm_reference(x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    if weight.dtype == x.dtype:
        return torch.nn.functional.rms_norm(x, weight.shape, weight, eps)  # computes in fp32 inside, rounds once
    return torch.nn.functional.rms_norm(x.float(), weight.shape, weight, eps).to(x.dtype)


def rms_norm(x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    """A new tensor of x's shape and dtype. Raises ValueError when the weight does not fit."""
    if weight.shape != x.shape[-1:] or weight.dtype not in (x.dtype, torch.float32):
        raise ValueError(f"rms_norm: x {tuple(x.shape)} {x.dtype}, weight {tuple(weight.shape)} {weight.dtype}")
    return rms_norm_reference(x, weight, eps)
