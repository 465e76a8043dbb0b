"""Root-mean-square norm of every head of q and k, in place, on the output of the fused projection.

    x[t, h, i] = x[t, h, i] / sqrt(mean_i(x[t, h, i]^2) + eps) * weight[h, i]       for the first heads of qkv

    qkv     [tokens, (heads + 2 * kv_heads) * D]    q | k | v; v stays as it is
    weight  [heads + kv_heads, D]                   qkv's dtype or fp32; q's weights, then k's

Computed in fp32 and rounded once.
"""

import torch


def head_norm_reference_(qkv: torch.Tensor, weight: torch.Tensor, eps: float) -> None:
    heads, dim = weight.shape
    x = qkv[:, : heads * dim].view(-1, heads, dim)
    x.copy_(torch.nn.functional.rms_norm(x.float(), (dim,), None, eps).mul_(weight))


def head_norm_(qkv: torch.Tensor, weight: torch.Tensor, eps: float) -> None:
    """Changes qkv. Raises ValueError when the weight does not fit."""
    if qkv.dim() != 2 or qkv.shape[1] <= weight.numel() or weight.dtype not in (qkv.dtype, torch.float32):
        raise ValueError(f"head_norm: qkv {tuple(qkv.shape)} {qkv.dtype}, weight {tuple(weight.shape)} {weight.dtype}")
    head_norm_reference_(qkv, weight, eps)
