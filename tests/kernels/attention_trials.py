"""One attention step with everything around it, on any device: tiny in the interpreter, real on a GPU.

Cells that no sequence wrote are NaN, table entries past a context are no block at all: whoever reads them shows.
"""

from dataclasses import dataclass
from typing import NamedTuple

import torch

from kernels.device_attention import DeviceAttention, device_attention
from kernels.paged_decode import DecodeRows, DecodeScratch
from kernels.paged_prefill import Chunks, chunk_tiles
from kernels.triton_jit import cdiv
from tests.kernels.padded import padded
from tests.kernels.replay import captured

NO_BLOCK = -(1 << 30)


@dataclass(frozen=True)
class Shape:
    """Of a model's attention; `gap` elements lie between the tokens of q, as in a view of qkv."""

    heads: int
    kv_heads: int
    dim: int
    block_tokens: int
    dtype: torch.dtype = torch.float32
    device: str = "cpu"
    gap: int = 0


class Sequences(NamedTuple):
    """keys, values: one [context, kv_heads, dim] tensor a sequence; tables: [sequences, max_blocks] int32."""

    cache: torch.Tensor
    tables: torch.Tensor
    keys: list[torch.Tensor]
    values: list[torch.Tensor]


def sequences(shape: Shape, contexts: list[int], *, finite: bool = False, spare_blocks: int = 2) -> Sequences:
    """Keys and values of random sequences in blocks of random order. `finite` leaves zeros where nobody wrote."""
    generator = torch.Generator(shape.device).manual_seed(sum(contexts))
    counts = [cdiv(context, shape.block_tokens) for context in contexts]
    num_blocks = sum(counts) + spare_blocks
    order = torch.randperm(num_blocks, generator=torch.Generator().manual_seed(1)).tolist()
    cells = (num_blocks, shape.block_tokens, 2, shape.kv_heads, shape.dim)
    cache = padded(torch.full(cells, 0.0 if finite else float("nan"), dtype=shape.dtype, device=shape.device))
    tables = torch.full((len(contexts), max(counts) + 1), NO_BLOCK, dtype=torch.int32)
    keys, values = list[torch.Tensor](), list[torch.Tensor]()
    for index, (context, count) in enumerate(zip(contexts, counts, strict=True)):
        blocks = [order.pop() for _ in range(count)]
        tables[index, :count] = torch.tensor(blocks, dtype=torch.int32)
        size = (count * shape.block_tokens, 2, shape.kv_heads, shape.dim)
        both = torch.randn(size, generator=generator, device=shape.device).to(shape.dtype)
        both[context:] = 0.0 if finite else float("nan")
        cache[blocks] = both.view(count, *cells[1:])
        keys.append(both[:context, 0])
        values.append(both[:context, 1])
    return Sequences(cache, padded(tables).to(shape.device), keys, values)


def queries(shape: Shape, tokens: int) -> torch.Tensor:
    """[tokens, heads, dim], a view with a gap after each token."""
    generator = torch.Generator(shape.device).manual_seed(tokens)
    values = torch.randn((tokens, shape.heads * shape.dim), generator=generator, device=shape.device).to(shape.dtype)
    return padded(values, gap=shape.gap).view(tokens, shape.heads, shape.dim)


def integers(shape: Shape, values: list[int] | list[tuple[int, int]]) -> torch.Tensor:
    """int32 on the device, with numbers around it that mean nothing."""
    return padded(torch.tensor(values, dtype=torch.int32, device=shape.device))


def decode_rows(
    shape: Shape, held: Sequences, contexts: list[int], *, splits: int, tokens: list[int] | None = None
) -> DecodeRows:
    """Row i is sequence i."""
    scratch = DecodeScratch.make(len(contexts), shape.heads, shape.kv_heads, shape.dim, splits, shape.device)
    scratch.parts.fill_(float("nan"))
    scratch.tops.fill_(float("nan"))
    scratch.totals.fill_(float("nan"))
    placed = None if tokens is None else integers(shape, tokens)
    return DecodeRows(integers(shape, contexts), held.tables[: len(contexts)], placed, scratch)


def chunks(shape: Shape, tables: torch.Tensor, starts: list[int], counts: list[int], contexts: list[int]) -> Chunks:
    """Chunk i is the sequence of row i of `tables`; one tile more than needed means nothing."""
    tiles = [*chunk_tiles(counts, contexts), (-1, 0)]
    held = (integers(shape, starts), integers(shape, counts), integers(shape, contexts))
    return Chunks(integers(shape, tiles), *held, tables)


def exact(
    q: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    window: int | None = None,
    scale: float | None = None,
    softcap: float | None = None,
) -> torch.Tensor:
    """The last queries of one sequence, [queries, heads, dim], by the formula in float64."""
    count, context = q.shape[0], keys.shape[0]
    group = q.shape[1] // keys.shape[1]
    repeated = keys.double().repeat_interleave(group, 1), values.double().repeat_interleave(group, 1)
    scores = torch.einsum("qhd,khd->hqk", q.double(), repeated[0]) * (q.shape[2] ** -0.5 if scale is None else scale)
    if softcap is not None:
        scores = softcap * torch.tanh(scores / softcap)
    last = torch.arange(context - count, context, device=q.device)[:, None]
    at = torch.arange(context, device=q.device)[None, :]
    seen = (at <= last) & (at > last - (context + 1 if window is None else window))
    weights = torch.softmax(scores.masked_fill(~seen, float("-inf")), -1)
    return torch.einsum("hqk,khd->qhd", weights, repeated[1])


def assert_close(found: torch.Tensor, expected: torch.Tensor, tolerance: float) -> None:
    """By the norm of all, and of the worst row [heads, dim]."""
    error = (found.double() - expected).flatten(1).norm(dim=1)
    size = expected.flatten(1).norm(dim=1)
    assert bool((error.norm() <= tolerance * size.norm()).item()), (error.norm() / size.norm()).item()
    assert bool((error <= 3 * tolerance * size).all()), (error / size).max().item()


TOLERANCE = {torch.float32: 1e-5, torch.float16: 1e-3, torch.bfloat16: 5e-3}


class Options(NamedTuple):
    """Of a call."""

    window: int | None = None
    scale: float | None = None
    softcap: float | None = None


PLAIN = Options()


def decode_trial(
    shape: Shape, contexts: list[int], splits: int, options: Options = PLAIN, tokens: list[int] | None = None
) -> DecodeRows:
    """Checks every row; those without context get zeros. Returns the records, for what else is to be seen in them."""
    held = sequences(shape, contexts)
    q = queries(shape, len(contexts) if tokens is None else max(tokens) + 1)
    rows = decode_rows(shape, held, contexts, splits=splits, tokens=tokens)
    out = device_attention(q, held.cache, DeviceAttention(rows, None), *options)
    for row, context in enumerate(contexts):
        at = slice(row, row + 1) if tokens is None else slice(tokens[row], tokens[row] + 1)
        if context:
            assert_close(out[at], exact(q[at], held.keys[row], held.values[row], *options), TOLERANCE[shape.dtype])
        else:
            assert bool((out[at] == 0).all())
    assert bool((rows.scratch.tickets == 0).all())
    return rows


def prefill_trial(shape: Shape, counts: list[int], contexts: list[int], options: Options = PLAIN) -> None:
    """Checks every chunk; they lie one token apart."""
    held = sequences(shape, contexts)
    starts = [sum(counts[:chunk]) + chunk for chunk in range(len(counts))]
    q = queries(shape, starts[-1] + counts[-1])
    step = DeviceAttention(None, chunks(shape, held.tables, starts, counts, contexts))
    out = device_attention(q, held.cache, step, *options)
    for chunk, (start, count) in enumerate(zip(starts, counts, strict=True)):
        rows = slice(start, start + count)
        expected = exact(q[rows], held.keys[chunk], held.values[chunk], *options)
        assert_close(out[rows], expected, TOLERANCE[shape.dtype])


def mixed_trial(shape: Shape, contexts: list[int], count: int) -> None:
    """A chunk of the last sequence between decode rows of the others: first token, last token, and in between."""
    held, rows = sequences(shape, contexts), len(contexts) - 1
    tokens = [0, *range(count + 1, count + rows)]
    q = queries(shape, count + rows)
    step = DeviceAttention(
        decode_rows(shape, held, contexts[:-1], splits=1, tokens=tokens),
        chunks(shape, held.tables[-1:], [1], [count], contexts[-1:]),
    )
    out = device_attention(q, held.cache, step)
    for row, token in enumerate(tokens):
        at = slice(token, token + 1)
        assert_close(out[at], exact(q[at], held.keys[row], held.values[row]), TOLERANCE[shape.dtype])
    chunk = slice(1, count + 1)
    assert_close(out[chunk], exact(q[chunk], held.keys[-1], held.values[-1]), TOLERANCE[shape.dtype])


def replay_trial(shape: Shape, contexts: list[int], splits: int) -> None:
    """A captured step gives the eager one's bits, time after time, also with other contexts, rows and tables."""
    held, q = sequences(shape, contexts), queries(shape, len(contexts))
    step = DeviceAttention(decode_rows(shape, held, contexts, splits=splits), None)
    assert step.decode is not None
    replay = captured(lambda: device_attention(q, held.cache, step), shape.device)
    shorter = [0 if row % 3 == 1 else max(1, context // 2) for row, context in enumerate(contexts)]
    for wanted in (contexts, shorter, contexts):
        step.decode.contexts.copy_(torch.tensor(wanted, dtype=torch.int32))
        eager = device_attention(q, held.cache, step).clone()
        for _ in range(2):
            assert torch.equal(replay(), eager)
        if wanted is contexts:
            for row, context in enumerate(contexts):
                at = slice(row, row + 1)
                expected = exact(q[at], held.keys[row][:context], held.values[row][:context])
                assert_close(eager[at], expected, TOLERANCE[shape.dtype])
    turned = list(reversed(range(len(contexts))))
    step.decode.tables.copy_(step.decode.tables[turned].clone())
    step.decode.contexts.copy_(torch.tensor(contexts, dtype=torch.int32)[turned])
    assert torch.equal(replay(), device_attention(q, held.cache, step))
    at = slice(0, 1)
    assert_close(replay()[at], exact(q[at], held.keys[-1], held.values[-1]), TOLERANCE[shape.dtype])


def far_trial(shape: Shape, num_blocks: int, contexts: list[int], count: int) -> None:
    """A decode row and a chunk whose blocks are the last ones of a large cache, which is zero elsewhere."""
    held = sequences(shape, contexts)
    cache = torch.zeros((num_blocks, *held.cache.shape[1:]), dtype=shape.dtype, device=shape.device)
    shift = num_blocks - held.cache.shape[0]
    cache[shift:] = held.cache
    tables = torch.where(held.tables >= 0, held.tables + shift, held.tables)
    held, q = held._replace(tables=tables), queries(shape, 1 + count)
    rows = decode_rows(shape, held, contexts[:1], splits=2)
    out = device_attention(q, cache, DeviceAttention(rows, chunks(shape, tables[1:], [1], [count], contexts[1:])))
    assert_close(out[:1], exact(q[:1], held.keys[0], held.values[0]), TOLERANCE[shape.dtype])
    assert_close(out[1:], exact(q[1:], held.keys[1], held.values[1]), TOLERANCE[shape.dtype])


def repeat_trial(shape: Shape, contexts: list[int], splits: int, times: int) -> None:
    """The same bits every time, in whatever order programs end."""
    held, q = sequences(shape, contexts), queries(shape, len(contexts))
    step = DeviceAttention(decode_rows(shape, held, contexts, splits=splits), None)
    first = device_attention(q, held.cache, step)
    for _ in range(times):
        assert torch.equal(first, device_attention(q, held.cache, step))
