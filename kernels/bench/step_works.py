"""What `steps.py` times: attention, element-wise work and sampling, as layers and the sampler call them.

A work is a list of the same operation on different data, together more than the L2 cache holds where there is memory
for it, with the bytes that one must move, and a peer of torch's that does the same where there is one. Sizes are in
`step_sizes.py`.
"""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Final

import torch

from kernels.bench.shrink_works import shrinks
from kernels.bench.step_sizes import Sizes, Work, sets_of
from kernels.device_attention import DeviceAttention, device_attention
from kernels.paged_decode import DecodeRows, DecodeScratch, decode_splits
from kernels.paged_prefill import Chunks, chunk_tiles
from kernels.rms_norm import rms_norm
from kernels.rope import rope_write_kv
from kernels.sampling import SamplingRows, sample
from kernels.silu_mul import gated_activation
from kernels.triton_jit import cdiv

BLOCK_TOKENS: Final = 16
SDPA: Final = "torch SDPA, dense keys and values"


def _attention(
    sizes: Sizes, name: str, contexts: list[int], counts: list[int], device: torch.device, dtype: torch.dtype
) -> Work:
    """Rows of one query, or chunks of more, each at the end of its context."""
    heads, kv_heads, dim = sizes.heads[name]
    rows, context, count = len(contexts), contexts[0], counts[0]
    blocks = cdiv(context, BLOCK_TOKENS)
    cell = 2 * kv_heads * dim * dtype.itemsize
    moved = rows * context * cell + 2 * rows * count * heads * dim * dtype.itemsize
    sets = sets_of(rows * context * cell, sizes.rotated_bytes)
    order = torch.randperm(rows * blocks, device=device).int().view(rows, blocks)
    integers = torch.tensor([contexts, counts, [count * row for row in range(rows)]], dtype=torch.int32, device=device)
    if count == 1:
        processors = torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 8
        splits = decode_splits(rows, kv_heads, context, processors)
        scratch = DecodeScratch.make(rows, heads, kv_heads, dim, splits, device)
        step = DeviceAttention(DecodeRows(integers[0], order, None, scratch), None)
    else:
        tiles = torch.tensor(chunk_tiles(counts, contexts), dtype=torch.int32, device=device)
        step = DeviceAttention(None, Chunks(tiles, integers[2], integers[1], integers[0], order))
    ours, theirs = list[Callable[[], torch.Tensor]](), list[Callable[[], torch.Tensor]]()
    for _ in range(sets):
        cache = torch.randn((rows * blocks, BLOCK_TOKENS, 2, kv_heads, dim), device=device, dtype=dtype)
        q = torch.randn((rows * count, heads, dim), device=device, dtype=dtype)
        dense = cache[order.long()].view(rows, -1, 2, kv_heads, dim)[:, :context]
        k, v = (dense[:, :, half].transpose(1, 2).contiguous() for half in (0, 1))
        ours.append(partial(device_attention, q, cache, step))
        theirs.append(partial(_dense, q, k, v, count))
    kind = f"decode, {rows} rows" if count == 1 else "prefill"
    return Work(
        f"attention, {name}, {kind}, {context} tokens",
        moved,
        ours,
        theirs,
        SDPA,
        0 if count == 1 else 2 * rows * heads * dim * count * (2 * context - count),
        (ours[0], theirs[0]),
    )


def _dense(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, count: int) -> torch.Tensor:
    """[rows * count, heads, dim], as ours."""
    rows, heads, dim = k.shape[0], q.shape[1], q.shape[2]
    queries = q.view(rows, count, heads, dim).transpose(1, 2)
    attended = torch.nn.functional.scaled_dot_product_attention(
        queries, k, v, is_causal=count > 1, enable_gqa=heads != k.shape[1]
    )
    return attended.transpose(1, 2).reshape(q.shape)


def decode(sizes: Sizes, device: torch.device, dtype: torch.dtype) -> Iterator[Work]:
    """Rows of one query."""
    for name in sizes.heads:
        for rows in sizes.rows:
            for context in sizes.contexts:
                yield _attention(sizes, name, [context] * rows, [1] * rows, device, dtype)


def prefill(sizes: Sizes, device: torch.device, dtype: torch.dtype) -> Iterator[Work]:
    """One prompt."""
    for name in sizes.heads:
        for prompt in sizes.prompts:
            yield _attention(sizes, name, [prompt], [prompt], device, dtype)


def elementwise(sizes: Sizes, device: torch.device, dtype: torch.dtype) -> Iterator[Work]:
    """The norm with its residual, rotary embedding with the cache write, the gated activation."""

    def random(tokens: int, width: int) -> list[torch.Tensor]:
        sets = sets_of(tokens * width * dtype.itemsize, sizes.rotated_bytes)
        return [torch.randn((tokens, width), device=device, dtype=dtype) for _ in range(sets)]

    weight = torch.rand(sizes.hidden, device=device).to(dtype)
    for tokens in sizes.tokens:
        size = tokens * sizes.hidden * dtype.itemsize
        pairs = zip(random(tokens, sizes.hidden), random(tokens, sizes.hidden), strict=True)
        norms = [partial(rms_norm, x, weight, 1e-5, residual) for x, residual in pairs]
        yield Work(f"norm with residual, {tokens} tokens of {sizes.hidden}", 4 * size, norms)
        gated = [partial(gated_activation, x, "silu") for x in random(tokens, 2 * sizes.inner)]
        moved = 3 * tokens * sizes.inner * dtype.itemsize
        yield Work(f"SiLU of the gate, {tokens} tokens of {sizes.inner}", moved, gated)
        for name, (heads, kv_heads, dim) in sizes.heads.items():
            blocks = (cdiv(tokens, BLOCK_TOKENS), BLOCK_TOKENS)
            cache = torch.zeros((*blocks, 2, kv_heads, dim), device=device, dtype=dtype)
            places, angles = torch.arange(tokens, device=device), torch.rand((tokens, 1, dim), device=device)
            turned = [
                partial(rope_write_kv, qkv, angles, angles, cache, places, heads)
                for qkv in random(tokens, (heads + 2 * kv_heads) * dim)
            ]
            moved = tokens * dim * (dtype.itemsize * (2 * heads + 5 * kv_heads) + 8)
            yield Work(f"rotary embedding and cache write, {name}, {tokens} tokens", moved, turned)


def sampling(sizes: Sizes, device: torch.device, dtype: torch.dtype) -> Iterator[Work]:
    """Greedy rows, rows with a temperature, rows with a nucleus too."""
    for vocab in sizes.vocabularies:
        for rows in sizes.rows:
            size = rows * vocab * dtype.itemsize
            logits = [
                3 * torch.randn((rows, vocab), device=device, dtype=dtype)
                for _ in range(sets_of(size, sizes.rotated_bytes))
            ]
            seeds = torch.arange(rows, device=device)
            for rule, temperature, top_p in (("greedy", 0.0, 1.0), ("temperature", 0.8, 1.0), ("top_p", 0.8, 0.9)):
                heat, nucleus = (torch.full((rows,), value, device=device) for value in (temperature, top_p))
                how = SamplingRows(heat, seeds.int() * 0, nucleus, heat * 0, seeds, seeds.int())
                drawn = [partial(sample, x, how) for x in logits]
                yield Work(f"sampling, {rule}, {rows} rows of {vocab} words", size, drawn)


FAMILIES: Final = {
    "decode": decode, "prefill": prefill, "elementwise": elementwise, "sampling": sampling, "shrinks": shrinks,
}  # fmt: skip
