"""What the layers of one attention kind read of a step: rotation, and which cells each of its queries sees.

Rows with one new token are decode rows and go through attention together; the others are prefill chunks, one each.
Blocks that lie wholly before a row's window are not read at all: its tables and masks count from its first block.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch

from kernels.paged_attention import DecodeGroup, PrefillChunk, attention_mask
from runtime.batch import Row
from runtime.layers.kv_cache import KVCache

# Decode rows are padded to the longest context of their group. Splitting costs about three calls per layer and group,
# so it starts where padding more than doubles the cells to read, and a few cells never matter.
_PADDING_FACTOR = 2
_PADDING_FREE_BLOCKS = 64


class AttentionView(NamedTuple):
    """cos, sin: [tokens, 1, head_dim] fp32. Every token is in exactly one decode group or chunk."""

    cos: torch.Tensor
    sin: torch.Tensor
    decode: tuple[DecodeGroup, ...]
    prefill: tuple[PrefillChunk, ...]


class PlacedRow(NamedTuple):
    """A batch row and the place of its first token in the step."""

    first: int
    row: Row


class _Span(NamedTuple):
    """A decode row and the part of its block table that it reads."""

    first: int
    row: Row
    skip: int
    length: int


class ViewBuilder:
    """Knows one kind's window and the cache; keeps nothing between steps. window: see `AttentionKind`."""

    def __init__(self, cache: KVCache, window: int | None, dtype: torch.dtype, device: torch.device) -> None:
        self._cache, self._window, self._dtype, self._device = cache, window, dtype, device

    def build(
        self,
        cos: torch.Tensor,
        sin: torch.Tensor,
        decode: Sequence[PlacedRow],
        prefill: Sequence[PlacedRow],
    ) -> AttentionView:
        """Rows have been checked against their block tables."""
        chunks = tuple(self._chunk(first, row) for first, row in prefill)
        return AttentionView(cos, sin, self._decode_groups(decode, everything=not prefill), chunks)

    def _skipped(self, row: Row) -> int:
        """How many blocks lie wholly before the window of the row's first new token."""
        return 0 if self._window is None else max(0, row.start - self._window + 1) // self._cache.block_tokens

    def _chunk(self, first: int, row: Row) -> PrefillChunk:
        count, size, skip = len(row.token_ids), self._cache.block_tokens, self._skipped(row)
        start = row.start - skip * size
        context = start + count
        blocks = self._indices(row.block_table[skip : skip + -(-context // size)])
        if row.start == 0 and (self._window is None or count <= self._window):
            return PrefillChunk(first, first + count, context, blocks, None)
        last = torch.arange(start, context, device=self._device)
        mask = attention_mask(self._first_seen(last), last, context, self._dtype)
        return PrefillChunk(first, first + count, context, blocks, mask)

    def _decode_groups(self, rows: Sequence[PlacedRow], *, everything: bool) -> tuple[DecodeGroup, ...]:
        if not rows:
            return ()
        size, spans = self._cache.block_tokens, list[_Span]()
        for first, row in rows:
            skip = self._skipped(row)
            spans.append(_Span(first, row, skip, row.start // size + 1 - skip))
        longest, total = max(span.length for span in spans), sum(span.length for span in spans)
        if longest * len(spans) <= _PADDING_FACTOR * total + _PADDING_FREE_BLOCKS:
            return (self._decode_group(spans, longest, everything=everything),)
        groups: dict[int, list[_Span]] = {}
        for span in spans:
            groups.setdefault((span.length - 1).bit_length(), []).append(span)
        return tuple(
            self._decode_group(group, max(span.length for span in group), everything=False) for group in groups.values()
        )

    def _decode_group(self, spans: list[_Span], width: int, *, everything: bool) -> DecodeGroup:
        size, blocks = self._cache.block_tokens, list[int]()
        for _, row, skip, length in spans:
            blocks.extend(row.block_table[skip : skip + length])
            blocks.extend([self._cache.empty_block] * (width - length))
        last = self._indices([row.start - skip * size for _, row, skip, _ in spans])
        mask = attention_mask(self._first_seen(last), last, width * size, self._dtype)
        tokens = None if everything else self._indices([span.first for span in spans])
        return DecodeGroup(tokens, self._indices(blocks), mask.view(len(spans), 1, 1, width * size))

    def _first_seen(self, last: torch.Tensor) -> torch.Tensor:
        return torch.zeros_like(last) if self._window is None else last - (self._window - 1)

    def _indices(self, values: Sequence[int]) -> torch.Tensor:
        return torch.tensor(values, dtype=torch.int64, device=self._device)
