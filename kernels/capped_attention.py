"""Attention whose scores are soft-capped before the mask: s = cap * tanh(q . k * scale / cap).

Torch's fused kernel cannot do this, so scores are materialised: for a prefill chunk in tiles of queries that hold at
most `TILE_ELEMENTS` scores. Products take and give q's dtype, as the model was trained; cap, mask and softmax are fp32.
Query heads that share a key/value head are folded into the query axis, as in `paged_attention`, so that keys are never
repeated. Keys and values are made contiguous first: torch's batched product of strided ones is up to 6x slower.
"""

from typing import Final

import torch

TILE_ELEMENTS: Final = 1 << 22


def capped_decode(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, mask: torch.Tensor, scale: float | None, softcap: float
) -> torch.Tensor:
    """q [..., queries, D]; k, v [..., context, D]; mask adds to [..., queries, context]. Gives q's shape and dtype."""
    scaled = q * (q.shape[-1] ** -0.5 if scale is None else scale)
    scores = torch.matmul(scaled, k.contiguous().transpose(-1, -2)).float()
    weights = torch.softmax(scores.div_(softcap).tanh_().mul_(softcap).add_(mask), -1)
    return torch.matmul(weights.to(q.dtype), v.contiguous())


def capped_prefill(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, mask: torch.Tensor | None, scale: float | None, softcap: float
) -> torch.Tensor:
    """q [heads, queries, D]; k, v [kv_heads, context, D]; mask [queries, context], None for plain causal order when
    context = queries. Returns q's shape and dtype."""
    heads, queries, dim = q.shape
    kv_heads, context, _ = k.shape
    k, v = k.contiguous(), v.contiguous()
    last = torch.arange(queries, device=q.device)[:, None]
    columns = torch.arange(context, device=q.device)
    out = torch.empty_like(q)
    rows = max(1, TILE_ELEMENTS // (heads * context))
    for start in range(0, queries, rows):
        end = min(queries, start + rows)
        if mask is None:
            hidden = columns > last[start:end]
            tile_mask = torch.zeros(hidden.shape, device=q.device).masked_fill_(hidden, float("-inf"))
        else:
            tile_mask = mask[start:end]
        folded = q[:, start:end].reshape(kv_heads, -1, dim)
        tile = capped_decode(folded, k, v, tile_mask.repeat(heads // kv_heads, 1), scale, softcap)
        out[:, start:end] = tile.view(heads, end - start, dim)
    return out
