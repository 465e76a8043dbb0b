"""Paged attention against a float64 loop over positions, with every unused cell holding large numbers."""

import itertools
import math

import pytest
import torch

from kernels import capped_attention
from kernels.paged_attention import DecodeGroup, PrefillChunk, attention_mask, paged_attention

HEADS, DIM = 6, 10


def make_cache(num_blocks: int, block_tokens: int, kv_heads: int) -> torch.Tensor:
    """Large finite numbers everywhere: a cell that is read by mistake ruins the result."""
    return torch.randn(num_blocks, block_tokens, 2, kv_heads, DIM, generator=torch.Generator().manual_seed(1)) * 50


def put(cache: torch.Tensor, blocks: list[int], context: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Writes random keys and values of `context` positions; returns them as [context, kv_heads, DIM]."""
    generator = torch.Generator().manual_seed(context)
    kv_heads, size = cache.shape[3], cache.shape[1]
    keys, values = (torch.randn(context, kv_heads, DIM, generator=generator) for _ in range(2))
    for position in range(context):
        cell = cache[blocks[position // size], position % size]
        cell[0], cell[1] = keys[position], values[position]
    return keys, values


def attend(
    q: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    first: int,
    last: int,
    scale: float = 1 / math.sqrt(DIM),
    softcap: float = math.inf,
) -> torch.Tensor:
    """One query [HEADS, DIM] over the positions first..last, in float64."""
    out = torch.empty(HEADS, DIM, dtype=torch.float64)
    for head in range(HEADS):
        kv_head = head // (HEADS // keys.shape[1])
        k, v = keys[first : last + 1, kv_head].double(), values[first : last + 1, kv_head].double()
        scores = k @ q[head].double() * scale
        capped = scores if softcap == math.inf else softcap * torch.tanh(scores / softcap)
        out[head] = torch.softmax(capped, 0) @ v
    return out


@pytest.mark.parametrize("kv_heads", [1, 2, 3, 6])
@pytest.mark.parametrize("window", [None, 4])
def test_decode_rows_see_their_own_positions(kv_heads: int, window: int | None) -> None:
    cache = make_cache(12, 4, kv_heads)
    cache[11] = 0  # the empty block
    tables, contexts = [[3], [7, 0, 9], [5, 2]], [1, 12, 6]
    written = [put(cache, table, context) for table, context in zip(tables, contexts, strict=True)]
    q = torch.randn(3, HEADS, DIM, generator=torch.Generator().manual_seed(2))
    last = torch.tensor(contexts) - 1
    first = torch.zeros_like(last) if window is None else last - (window - 1)
    blocks = torch.tensor([[3, 11, 11], [7, 0, 9], [5, 2, 11]]).flatten()
    mask = attention_mask(first, last, 12, q.dtype).view(3, 1, 1, 12)
    out = paged_attention(q, cache, (DecodeGroup(None, blocks, mask),), ())
    for row, (keys, values) in enumerate(written):
        expected = attend(q[row], keys, values, max(0, int(first[row])), int(last[row]))
        assert (out[row].double() - expected).norm() <= 1e-5 * expected.norm()


@pytest.mark.parametrize(
    ("start", "count", "masked"), [(0, 9, False), (0, 9, True), (0, 1, False), (3, 6, True), (8, 5, True)]
)
def test_a_chunk_sees_what_came_before_and_itself(start: int, count: int, masked: bool) -> None:
    cache, context, blocks = make_cache(9, 4, 2), start + count, [6, 1, 8, 3]
    keys, values = put(cache, blocks, context)
    q = torch.randn(count, HEADS, DIM, generator=torch.Generator().manual_seed(3))
    last = torch.arange(start, context)
    mask = attention_mask(torch.zeros_like(last), last, context, q.dtype) if masked else None
    out = paged_attention(q, cache, (), (PrefillChunk(0, count, context, torch.tensor(blocks), mask),))
    for row in range(count):
        expected = attend(q[row], keys, values, 0, start + row)
        assert (out[row].double() - expected).norm() <= 1e-5 * expected.norm()


@pytest.mark.parametrize(("scale", "softcap"), [(0.7, None), (None, 1.5), (0.7, 0.4)])
@pytest.mark.parametrize("tile", [1, 100, 1 << 22])
@pytest.mark.parametrize("kv_heads", [1, 3, 6])
def test_scale_and_softcap(
    scale: float | None, softcap: float | None, tile: int, kv_heads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(capped_attention, "TILE_ELEMENTS", tile)
    cache, given = make_cache(12, 4, kv_heads), (scale or 1 / math.sqrt(DIM), softcap or math.inf)
    keys, values = put(cache, [3, 7, 0], 11)
    q = torch.randn(1 + 11 + 5, HEADS, DIM, generator=torch.Generator().manual_seed(2)) * 2
    at, last = torch.tensor([10]), torch.arange(6, 11)
    mask = attention_mask(at - 4, at, 12, q.dtype).view(1, 1, 1, -1)
    late = attention_mask(last - 3, last, 11, q.dtype)
    blocks = torch.tensor([3, 7, 0])
    chunks = (PrefillChunk(1, 12, 11, blocks, None), PrefillChunk(12, 17, 11, blocks, late))
    out = paged_attention(q, cache, (DecodeGroup(torch.tensor([0]), blocks, mask),), chunks, scale, softcap).double()
    assert torch.allclose(out[0], attend(q[0], keys, values, 6, 10, *given), atol=1e-5)
    for row in range(11):
        assert torch.allclose(out[1 + row], attend(q[1 + row], keys, values, 0, row, *given), atol=1e-5)
    for row in range(5):
        assert torch.allclose(out[12 + row], attend(q[12 + row], keys, values, row + 3, row + 6, *given), atol=1e-5)


def test_groups_and_chunks_share_a_step_in_any_order() -> None:
    cache = make_cache(12, 4, 2)
    keys, values = put(cache, [2, 4], 7)
    long_keys, long_values = put(cache, [5, 0, 1], 11)
    chunk_keys, chunk_values = put(cache, [9, 10], 5)
    q = torch.randn(7, HEADS, DIM, generator=torch.Generator().manual_seed(4))

    def group(token: int, table: list[int], last: int) -> DecodeGroup:
        at = torch.tensor([last])
        mask = attention_mask(torch.zeros_like(at), at, len(table) * 4, q.dtype).view(1, 1, 1, -1)
        return DecodeGroup(torch.tensor([token]), torch.tensor(table), mask)

    chunk = PrefillChunk(1, 6, 5, torch.tensor([9, 10]), None)
    groups = [group(6, [2, 4], 6), group(0, [5, 0, 1], 10)]
    for ordered in itertools.permutations(groups):
        out = paged_attention(q, cache, ordered, (chunk,)).double()
        assert torch.allclose(out[6], attend(q[6], keys, values, 0, 6), atol=1e-5)
        assert torch.allclose(out[0], attend(q[0], long_keys, long_values, 0, 10), atol=1e-5)
        for row in range(5):
            assert torch.allclose(out[1 + row], attend(q[1 + row], chunk_keys, chunk_values, 0, row), atol=1e-5)


def test_shapes_that_do_not_fit_are_refused() -> None:
    cache = make_cache(2, 4, 4)
    for q in (torch.zeros(1, 6, DIM), torch.zeros(1, 8, DIM + 2), torch.zeros(1, 8, DIM).half()):
        with pytest.raises(ValueError, match="paged_attention"):
            paged_attention(q, cache, (), ())
