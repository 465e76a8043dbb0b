"""Rotary position embedding of q and k in place, and the write of k and v into the paged cache.

    pair (i, i + D/2) of each q and k head:   x_i' = x_i cos - x_{i+D/2} sin,  x_{i+D/2}' = x_{i+D/2} cos + x_i sin

    qkv      [tokens, (heads + 2 * kv_heads) * D]   q | k | v, the output of the fused projection; q and k change
    cos, sin [tokens, 1, D]                         fp32; `sin` is signed: its first half is negated (`rotary_table`)
    cache    [blocks, block_tokens, 2, kv_heads, D] one layer; k and v of a token lie together, so that one copy
                                                    writes both and one gather reads both
    places   [tokens] int64                         block * block_tokens + offset of each token

The rotation runs in fp32 and is rounded once. Places must be distinct.
"""

import torch


def rotary_table(
    inverse_frequency: torch.Tensor, num_positions: int, amplitude: float = 1.0
) -> tuple[torch.Tensor, torch.Tensor]:
    """(cos, signed sin), each [num_positions, 1, D] fp32 and times `amplitude`, for frequencies [D/2]."""
    positions = torch.arange(num_positions, dtype=torch.float32, device=inverse_frequency.device)
    angles = positions[:, None] * inverse_frequency.float()
    cos, sin = angles.cos() * amplitude, angles.sin() * amplitude
    return torch.cat((cos, cos), -1).unsqueeze(1), torch.cat((-sin, sin), -1).unsqueeze(1)


def rope_write_kv_reference(
    qkv: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, cache: torch.Tensor, places: torch.Tensor, num_heads: int
) -> torch.Tensor:
    _, _, _, kv_heads, dim = cache.shape
    tokens = qkv.shape[0]
    heads = qkv[:, : (num_heads + kv_heads) * dim].view(tokens, num_heads + kv_heads, dim)
    swapped = torch.roll(heads, dim // 2, -1)  # with the signed sine this is the "rotate half" of the formula
    heads.copy_((heads * cos).addcmul_(swapped.float(), sin))
    keys_values = qkv[:, num_heads * dim :].view(tokens, 2, kv_heads, dim)
    cache.view(-1, 2, kv_heads, dim).index_copy_(0, places, keys_values)
    return heads[:, :num_heads]


def rope_write_kv(
    qkv: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, cache: torch.Tensor, places: torch.Tensor, num_heads: int
) -> torch.Tensor:
    """Rotates q and k in place, writes k and v to the cache, returns q as a view [tokens, heads, D].

    Raises ValueError when shapes do not fit together.
    """
    tokens, (kv_heads, dim) = qkv.shape[0], cache.shape[3:]
    if qkv.shape[1] != (num_heads + 2 * kv_heads) * dim or qkv.dtype != cache.dtype:
        raise ValueError(f"rope: qkv {tuple(qkv.shape)} {qkv.dtype}, cache {tuple(cache.shape)} {cache.dtype}")
    if cos.shape != (tokens, 1, dim) or sin.shape != cos.shape or places.shape != (tokens,):
        raise ValueError(f"rope: {tokens} tokens, cos {tuple(cos.shape)}, places {tuple(places.shape)}")
    return rope_write_kv_reference(qkv, cos, sin, cache, places, num_heads)
