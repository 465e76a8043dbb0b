"""Attention over a paged key/value cache, for decode rows (one query each) and prefill chunks (many queries).

    out[t] = sum_j softmax_j(s[t, j]) v[j]     over the positions j that query t may see
    s[t, j] = q[t] . k[j] * scale              scale is 1 / sqrt(D) unless given; with a softcap c: c * tanh(s / c)

    q      [tokens, heads, D]                          after RoPE
    cache  [blocks, block_tokens, 2, kv_heads, D]      one layer, this step's keys and values already written
    out    [tokens, heads, D]                          written

Query head h reads key/value head h // (heads / kv_heads). Decode folds the query heads of one key/value head into
the query axis, which keeps grouped-query attention on torch's fast path (its `enable_gqa` form is 6x slower in bf16).
The softmax runs in fp32 inside torch's kernel, which knows no softcap: that form is `capped_attention.py`. What a row
may see is one additive mask (0 or -inf), built once a step and shared by all layers. Cells that no mask lets through
are still read, so the cache must hold finite numbers everywhere: it starts as zeros and blocks are cleared when they
change hands (`KVCache`).

Decode rows come in groups of similar context length: all rows of a group are gathered to the length of its longest.
Positions, contexts and masks count from the first block that is given, which need not be the sequence's first.

On a GPU the same comes from records on the device, in one launch for all rows: `device_attention.py`.
"""

from typing import NamedTuple

import torch

from kernels.capped_attention import capped_decode, capped_prefill


class DecodeGroup(NamedTuple):
    """Decode rows that are computed together.

    tokens: [n] int64, which rows of q; None when the group is all of q, in order.
    blocks: [n * blocks per row] int64, block tables padded with the cache's empty block.
    mask: [n, 1, 1, blocks per row * block_tokens], q's dtype.
    """

    tokens: torch.Tensor | None
    blocks: torch.Tensor
    mask: torch.Tensor


class PrefillChunk(NamedTuple):
    """The queries start .. end - 1 of one sequence, whose last one sits at position `context - 1`.

    blocks: [blocks] int64, covering `context` positions.
    mask: [end - start, context], q's dtype; None for plain causal order from position 0, which is faster.
    """

    start: int
    end: int
    context: int
    blocks: torch.Tensor
    mask: torch.Tensor | None


def attention_mask(first: torch.Tensor, last: torch.Tensor, width: int, dtype: torch.dtype) -> torch.Tensor:
    """[n, width]: 0 where first[i] <= column <= last[i], else -inf. `first` and `last` are [n] int64."""
    columns = torch.arange(width, device=last.device)
    hidden = (columns > last[:, None]) | (columns < first[:, None])
    return torch.zeros(hidden.shape, dtype=dtype, device=last.device).masked_fill_(hidden, float("-inf"))


def paged_decode_reference(
    q: torch.Tensor, cache: torch.Tensor, group: DecodeGroup, scale: float | None, softcap: float | None
) -> torch.Tensor:
    """The group's rows of out, [n, heads, D]."""
    rows, (kv_heads, dim) = group.mask.shape[0], cache.shape[3:]
    picked = q if group.tokens is None else q.index_select(0, group.tokens)
    folded = picked.reshape(rows, kv_heads, -1, dim)
    gathered = cache.index_select(0, group.blocks).view(rows, -1, 2, kv_heads, dim)
    keys, values = gathered[:, :, 0].transpose(1, 2), gathered[:, :, 1].transpose(1, 2)
    if softcap is not None:
        return capped_decode(folded, keys, values, group.mask, scale, softcap).reshape(rows, -1, dim)
    attended = torch.nn.functional.scaled_dot_product_attention(folded, keys, values, attn_mask=group.mask, scale=scale)
    return attended.reshape(rows, -1, dim)


def paged_prefill_reference(
    q: torch.Tensor, cache: torch.Tensor, chunk: PrefillChunk, scale: float | None, softcap: float | None
) -> torch.Tensor:
    """The chunk's rows of out, [end - start, heads, D]."""
    heads, (kv_heads, dim) = q.shape[1], cache.shape[3:]
    queries = q[chunk.start : chunk.end].transpose(0, 1).unsqueeze(0)
    gathered = cache.index_select(0, chunk.blocks).view(-1, 2, kv_heads, dim)[: chunk.context]
    if softcap is not None:
        keys, values = gathered[:, 0].transpose(0, 1), gathered[:, 1].transpose(0, 1)
        return capped_prefill(queries[0], keys, values, chunk.mask, scale, softcap).transpose(0, 1)
    repeated = gathered[:, :, :, None].expand(-1, -1, -1, heads // kv_heads, -1).reshape(-1, 2, heads, dim)
    keys, values = repeated[:, 0].transpose(0, 1).unsqueeze(0), repeated[:, 1].transpose(0, 1).unsqueeze(0)
    attended = torch.nn.functional.scaled_dot_product_attention(
        queries, keys, values, attn_mask=chunk.mask, is_causal=chunk.mask is None, scale=scale
    )
    return attended[0].transpose(0, 1)


def paged_attention(
    q: torch.Tensor,
    cache: torch.Tensor,
    decode: tuple[DecodeGroup, ...],
    prefill: tuple[PrefillChunk, ...],
    scale: float | None = None,
    softcap: float | None = None,
) -> torch.Tensor:
    """Returns out [tokens, heads, D]; every row of q must be in exactly one group or chunk.

    Raises ValueError when shapes do not fit together.
    """
    if q.shape[2] != cache.shape[4] or q.shape[1] % cache.shape[3] or q.dtype != cache.dtype:
        raise ValueError(f"paged_attention: q {tuple(q.shape)} {q.dtype}, cache {tuple(cache.shape)} {cache.dtype}")
    if len(decode) == 1 and decode[0].tokens is None and not prefill:
        return paged_decode_reference(q, cache, decode[0], scale, softcap)
    out = torch.empty(q.shape, dtype=q.dtype, device=q.device)
    for group in decode:
        attended = paged_decode_reference(q, cache, group, scale, softcap)
        if group.tokens is None:
            out.copy_(attended)
        else:
            out.index_copy_(0, group.tokens, attended)
    for chunk in prefill:
        out[chunk.start : chunk.end] = paged_prefill_reference(q, cache, chunk, scale, softcap)
    return out
