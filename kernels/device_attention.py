"""Attention over the paged cache from records that live on the device: decode rows and prefill chunks of one step.

    out[t] = sum_j softmax_j(s[t, j]) v[j]     over the positions j that query t may see (`paged_attention.py`)

    q      [tokens, heads, D]                       after RoPE; rows may be a view into qkv
    cache  [blocks, block_tokens, 2, kv_heads, D]   one layer, this step's keys and values already written
    out    [tokens, heads, D]                       new; tokens in no row and no chunk are not written

Unlike the form of `paged_attention.py`, the records know nothing of windows and masks: they count from position 0 of
each sequence and serve all layers, whatever their kind; the window comes with the call. The buffers may be larger than
the step: rows with context 0 and tiles with chunk -1 are no work. One launch for decode rows, one for chunks.

On a device cells past a context are never read. The reference, for tensors on a CPU, builds the other form and needs
finite numbers everywhere, as that form does.
"""

from typing import NamedTuple

import torch

from kernels.paged_attention import DecodeGroup, PrefillChunk, attention_mask
from kernels.paged_attention import paged_attention as by_groups_and_chunks
from kernels.paged_decode import DecodeRows, paged_decode
from kernels.paged_prefill import Chunks, paged_prefill
from kernels.triton_jit import cdiv, runs_kernel

_DTYPES = (torch.bfloat16, torch.float16, torch.float32)


class DeviceAttention(NamedTuple):
    """Which tokens of a step attend to what. A token is in at most one row or chunk."""

    decode: DecodeRows | None
    prefill: Chunks | None


def device_attention_reference(
    q: torch.Tensor,
    cache: torch.Tensor,
    step: DeviceAttention,
    window: int | None,
    scale: float,
    softcap: float | None,
) -> torch.Tensor:
    """The same through groups and chunks, one sequence at a time; padding rows get zeros."""
    out = torch.zeros(q.shape, dtype=q.dtype)
    block_tokens = cache.shape[1]
    for token, count, context, table in _sequences(step):
        last = torch.arange(context - count, context)
        first = torch.zeros_like(last) if window is None else last - (window - 1)
        mask = attention_mask(first, last, context, q.dtype)
        blocks = table[: cdiv(context, block_tokens)].long()
        rows = q[token : token + count]
        if count == 1:
            padded = torch.full((1, 1, 1, len(blocks) * block_tokens), float("-inf"), dtype=q.dtype)
            padded[..., :context] = mask
            group = DecodeGroup(None, blocks, padded)
            out[token] = by_groups_and_chunks(rows, cache, (group,), (), scale, softcap)[0]
        else:
            chunk = PrefillChunk(0, count, context, blocks, mask)
            out[token : token + count] = by_groups_and_chunks(rows, cache, (), (chunk,), scale, softcap)
    return out


def _sequences(step: DeviceAttention) -> list[tuple[int, int, int, torch.Tensor]]:
    """(first row of q, queries, context, table) of everything that is work."""
    found = list[tuple[int, int, int, torch.Tensor]]()
    if step.decode is not None:
        contexts = step.decode.contexts.tolist()
        tokens = range(len(contexts)) if step.decode.tokens is None else step.decode.tokens.tolist()
        found += [
            (token, 1, context, table)
            for token, context, table in zip(tokens, contexts, step.decode.tables, strict=True)
            if context
        ]
    if step.prefill is not None:
        chunks = step.prefill
        found += [
            (int(chunks.starts[chunk]), int(chunks.counts[chunk]), int(chunks.contexts[chunk]), chunks.tables[chunk])
            for chunk in sorted({int(tile[0]) for tile in chunks.tiles} - {-1})
        ]
    return found


def device_attention(
    q: torch.Tensor,
    cache: torch.Tensor,
    step: DeviceAttention,
    window: int | None = None,
    scale: float | None = None,
    softcap: float | None = None,
) -> torch.Tensor:
    """Returns out [tokens, heads, D]. window: how many positions a query sees, its own included; None for all.

    Raises ValueError when shapes, dtypes, devices or strides do not fit together.
    """
    _check(q, cache, window, softcap)
    scale = q.shape[2] ** -0.5 if scale is None else scale
    if step.decode is not None:
        _check_decode(q, cache, step.decode)
    if step.prefill is not None:
        _check_prefill(q, step.prefill)
    if not runs_kernel(q):
        return device_attention_reference(q, cache, step, window, scale, softcap)
    out = torch.empty(q.shape, dtype=q.dtype, device=q.device)
    if step.decode is not None and step.decode.contexts.shape[0]:
        paged_decode(q, cache, step.decode, out, window, scale, softcap)
    if step.prefill is not None and step.prefill.tiles.shape[0]:
        paged_prefill(q, cache, step.prefill, out, window, scale, softcap)
    return out


def _check(q: torch.Tensor, cache: torch.Tensor, window: int | None, softcap: float | None) -> None:
    if q.dim() != 3 or cache.dim() != 5 or cache.shape[2] != 2 or q.shape[2] != cache.shape[4]:
        raise ValueError(f"device_attention: q {tuple(q.shape)}, cache {tuple(cache.shape)}")
    if q.shape[1] % cache.shape[3]:
        raise ValueError(f"device_attention: {q.shape[1]} query heads, {cache.shape[3]} key/value heads")
    if q.dtype != cache.dtype or q.dtype not in _DTYPES or q.device != cache.device:
        raise ValueError(f"device_attention: q {q.dtype} on {q.device}, cache {cache.dtype} on {cache.device}")
    if q.stride()[1:] != (q.shape[2], 1) or not cache[0].is_contiguous():
        raise ValueError(f"device_attention: heads and blocks must be dense; q {q.stride()}, cache {cache.stride()}")
    if (window is not None and window < 1) or (softcap is not None and softcap <= 0):
        raise ValueError(f"device_attention: window {window}, softcap {softcap}")


def _check_decode(q: torch.Tensor, cache: torch.Tensor, rows: DecodeRows) -> None:
    count, scratch = rows.contexts.shape[0], rows.scratch
    named = {"contexts": rows.contexts, "tables": rows.tables}
    if rows.tokens is not None:
        named["tokens"] = rows.tokens
    _check_integers(q, named, count)
    if rows.tokens is None and count > q.shape[0]:
        raise ValueError(f"device_attention: {count} decode rows, {q.shape[0]} tokens")
    held, heads, splits, dim = scratch.parts.shape
    if held < count or (heads, dim) != tuple(q.shape[1:]) or scratch.tickets.shape != (held, cache.shape[3]):
        raise ValueError(f"device_attention: {count} rows, q {tuple(q.shape)}, scratch {tuple(scratch.parts.shape)}")
    if scratch.tops.shape != (held, heads, splits) or scratch.parts.device != q.device:
        raise ValueError(f"device_attention: scratch on {scratch.parts.device}, q on {q.device}")


def _check_prefill(q: torch.Tensor, chunks: Chunks) -> None:
    named = {"starts": chunks.starts, "counts": chunks.counts, "contexts": chunks.contexts, "tables": chunks.tables}
    _check_integers(q, named, chunks.starts.shape[0])
    _check_integers(q, {"tiles": chunks.tiles}, chunks.tiles.shape[0])
    if chunks.tiles.shape[1:] != (2,) or not chunks.tiles.is_contiguous():
        raise ValueError(f"device_attention: tiles {tuple(chunks.tiles.shape)} {chunks.tiles.stride()}")


def _check_integers(q: torch.Tensor, named: dict[str, torch.Tensor], count: int) -> None:
    for name, tensor in named.items():
        dimensions = 2 if name in ("tables", "tiles") else 1
        if tensor.dtype != torch.int32 or tensor.device != q.device:
            raise ValueError(f"device_attention: {name} is {tensor.dtype} on {tensor.device}, not int32 on {q.device}")
        if tensor.dim() != dimensions or tensor.shape[0] != count or (tensor.numel() and tensor.stride(-1) != 1):
            raise ValueError(f"device_attention: {name} {tuple(tensor.shape)} {tensor.stride()}, entries: {count}")
