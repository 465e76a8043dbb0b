"""A batch of plain records as what the device's kernels read: one buffer, one copy, no reading back.

Two kinds of steps. *Decode*: every row has one new token and samples; row i is token i, and the numbers of rows and of
LoRA tiles are rounded up, so that few shapes (`DecodeShape`) serve all steps and each can be a graph. Rows of padding
write nothing (place -1) and see nothing (context 0). *Mixed*: anything else, at its own size.

A token that the host does not know yet (PENDING) is named by its place among the tokens that the step before drew; the
device takes it from there (`sources`, -1 for a known one).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from kernels.device_attention import DeviceAttention
from kernels.paged_decode import DecodeRows, DecodeScratch
from kernels.paged_prefill import Chunks, chunk_tiles
from kernels.sampling import SamplingRows
from kernels.segments import NO_TILE, DeviceSegments, Segments, build_segments, tile_rows_for
from kernels.triton_jit import cdiv, next_power_of_2
from runtime.batch import BASE_SLOT, PENDING, Row
from runtime.errors import RunnerMisused
from runtime.layers.adapter_pool import AdapterPool
from runtime.layers.step_layout import StepLayout, StepSizes

# Kernels are compiled for strides that are multiples of 16 and for others: room for tiles always is one.
_TILE_ROOM: Final = 16
_NO_TABLE: Final = (-1, np.empty(0, np.int32))
# h of the shrink has the least of these widths that holds the step's largest rank: graphs know it, so they are few.
RANK_WIDTHS: Final = (16, 64, 256)


class DecodeShape(NamedTuple):
    """What a decode step's launches depend on. tiles: programs for LoRA, 0 for a step of the base alone; groups: a bit
    for each projection group that some adapter of the step has; rank_width: see `DeviceSegments.max_rank`."""

    rows: int
    tiles: int = 0
    tile_rows: int = 0
    groups: int = 0
    rank_width: int = 0


@dataclass(frozen=True)
class DeviceStep:
    """ids, sources, positions, places: [tokens]. sampled: rows of the hidden states whose logits are wanted, None for
    all, in order. groups: a bit for each projection group that LoRA touches; 0 without segments."""

    ids: torch.Tensor
    sources: torch.Tensor
    positions: torch.Tensor
    places: torch.Tensor
    attention: DeviceAttention
    sampled: torch.Tensor | None
    sampling: SamplingRows
    segments: DeviceSegments | None
    groups: int

    @property
    def is_decode(self) -> bool:
        """Whether every row is one new token that samples: the step may be a graph."""
        return self.sampled is None

    @property
    def num_sampled(self) -> int:
        """Rows of logits, those of padding included."""
        return self.sampling.seeds.shape[0]


class _Lora(NamedTuple):
    segments: Segments
    tile_rows: int
    num_tiles: int
    groups: int
    rank_width: int


class _Decode(NamedTuple):
    token: int
    token_id: int
    source: int
    position: int
    place: int


class HostStep(NamedTuple):
    """A step written by the host: `buffer` holds `layout`. shape: of a decode step, else None."""

    layout: StepLayout
    shape: DecodeShape | None
    lora: _Lora | None


class StepWriter:
    """Knows the pool, the block size and the buckets. Of the last step it keeps the block tables as arrays, and where
    each row ended: tables only grow while a sequence runs, and are long.

    row_buckets: numbers of rows that decode steps are rounded up to, rising. table_blocks: width of block tables.
    most_bytes: of a decode step.
    """

    def __init__(
        self,
        pool: AdapterPool,
        block_tokens: int,
        num_blocks: int,
        table_blocks: int,
        row_buckets: Sequence[int],
    ) -> None:
        self._pool, self._block_tokens, self._table_blocks = pool, block_tokens, table_blocks
        self._num_blocks = num_blocks
        self._tables: dict[int, tuple[int, npt.NDArray[np.int32]]] = {}
        self._row_buckets = tuple(row_buckets)
        self._layouts: dict[StepSizes, StepLayout] = {}
        most = self._row_buckets[-1]
        self.most_bytes = StepLayout(StepSizes(most, most, 0, 0, most, _room(most), False, table_blocks)).num_bytes

    def plan(self, rows: Sequence[Row]) -> HostStep:
        """Sizes of the step; nothing is written yet. Raises RunnerMisused for a slot that is not READY."""
        lora = self._lora(rows)
        bucket = self._bucket(rows)
        if bucket is None:
            return HostStep(StepLayout(self._mixed_sizes(rows, lora)), None, lora)
        tiles = 0 if lora is None else min(next_power_of_2(lora.num_tiles), bucket)
        sizes = StepSizes(bucket, bucket, 0, 0, bucket, _room(tiles), False, self._table_blocks)
        layout = self._layouts.get(sizes)
        if layout is None:
            layout = self._layouts[sizes] = StepLayout(sizes)
        shape = DecodeShape(bucket)
        if lora is not None:
            shape = DecodeShape(bucket, tiles, lora.tile_rows, lora.groups, lora.rank_width)
        return HostStep(layout, shape, lora)

    def write(
        self, step: HostStep, rows: Sequence[Row], drawn: Mapping[int, int], buffer: npt.NDArray[np.uint8]
    ) -> None:
        """drawn: by sequence, the place of its token among those that the last step drew. Raises RunnerMisused."""
        arrays, size = step.layout.arrays(buffer), self._block_tokens
        if step.shape is not None:
            _pad(arrays, len(rows))
        tables = self._tables_of(rows)
        token = chunk = 0
        decodes, sampled, counts, contexts = list[_Decode](), list[tuple[int, Row]](), list[int](), list[int]()
        for row, table in zip(rows, tables, strict=True):
            count, end = len(row.token_ids), row.start + len(row.token_ids)
            source = -1
            if row.token_ids[-1] == PENDING:
                if row.sequence_id not in drawn:
                    raise RunnerMisused(f"sequence {row.sequence_id}: no token of the last step is its next")
                source = drawn[row.sequence_id]
            if count == 1:
                place = int(table[row.start // size]) * size + row.start % size
                arrays["tables"][len(decodes), : len(table)] = table
                decodes.append(_Decode(token, row.token_ids[0], source, row.start, place))
            else:
                span, positions = slice(token, token + count), np.arange(row.start, end, dtype=np.int64)
                arrays["ids"][span] = row.token_ids
                arrays["sources"][span] = -1
                arrays["positions"][span] = positions
                arrays["places"][span] = table[positions // size].astype(np.int64) * size + positions % size
                arrays["chunk_starts"][chunk] = token
                arrays["chunk_tables"][chunk, : len(table)] = table
                counts.append(count)
                contexts.append(end)
                chunk += 1
            token += count
            if row.samples:
                sampled.append((token - 1, row))
        if decodes:
            at, ids, sources, positions, places = (np.array(column) for column in zip(*decodes, strict=True))
            arrays["ids"][at], arrays["sources"][at] = ids, sources
            arrays["positions"][at], arrays["places"][at] = positions, places
            arrays["contexts"][: len(decodes)] = positions + 1
            if step.shape is None:
                arrays["rows"][:] = at
        if sampled:
            _write_sampling(arrays, [row for _, row in sampled])
            if step.shape is None:
                arrays["sampled"][:] = [place for place, _ in sampled]
        if chunk:
            arrays["chunk_counts"][:] = counts
            arrays["chunk_contexts"][:] = contexts
            arrays["chunk_tiles"][:] = chunk_tiles(counts, contexts)
        if step.lora is not None:
            tiles = np.array(list(step.lora.segments.tiles(step.lora.tile_rows)), np.int32)
            arrays["lora"][:] = NO_TILE
            arrays["lora"][:, : len(tiles)] = tiles.T

    def read(self, step: HostStep, buffer: torch.Tensor, scratch: DecodeScratch | None) -> DeviceStep:
        """The device's view of a buffer into which the step was, or will be, copied."""
        sizes, parts = step.layout.sizes, step.layout.tensors(buffer)
        decode = prefill = segments = None
        if scratch is not None:
            decode = DecodeRows(parts["contexts"], parts["tables"], parts.get("rows"), scratch)
        if sizes.chunks:
            prefill = Chunks(
                parts["chunk_tiles"],
                parts["chunk_starts"],
                parts["chunk_counts"],
                parts["chunk_contexts"],
                parts["chunk_tables"],
            )
        if step.lora is not None:
            tiles = step.lora.num_tiles if step.shape is None else step.shape.tiles
            segments = DeviceSegments(parts["lora"], tiles, step.lora.tile_rows, sizes.tokens, step.lora.rank_width)
        return DeviceStep(
            parts["ids"],
            parts["sources"],
            parts["positions"],
            parts["places"],
            DeviceAttention(decode, prefill),
            parts.get("sampled"),
            SamplingRows(
                parts["temperature"],
                parts["top_k"],
                parts["top_p"],
                parts["min_p"],
                parts["seeds"],
                parts["draw_positions"],
            ),
            segments,
            0 if step.lora is None else step.lora.groups,
        )

    def _tables_of(self, rows: Sequence[Row]) -> list[npt.NDArray[np.int32]]:
        """The blocks that each row reads. Raises RunnerMisused for one that the cache does not have."""
        before, self._tables = self._tables, {}
        tables = []
        for row in rows:
            blocks = cdiv(row.start + len(row.token_ids), self._block_tokens)
            end, known = before.get(row.sequence_id, _NO_TABLE)
            # A sequence that lost its blocks and starts over does not go on where it was.
            kept = min(len(known), blocks) if end == row.start else 0
            if kept < blocks:
                new = np.array(row.block_table[kept:blocks], np.int32)
                if new.min() < 0 or new.max() >= self._num_blocks:
                    raise RunnerMisused(f"sequence {row.sequence_id}: a block outside the cache")
                known = np.concatenate((known[:kept], new))
            self._tables[row.sequence_id] = row.start + len(row.token_ids), known
            tables.append(known[:blocks])
        return tables

    def _bucket(self, rows: Sequence[Row]) -> int | None:
        """Of a decode step; None for a mixed one, and for one of more rows than the largest bucket."""
        if len(rows) > self._row_buckets[-1] or not all(row.samples and len(row.token_ids) == 1 for row in rows):
            return None
        return next(bucket for bucket in self._row_buckets if bucket >= len(rows))

    def _mixed_sizes(self, rows: Sequence[Row], lora: _Lora | None) -> StepSizes:
        counts = [len(row.token_ids) for row in rows]
        chunks = [(len(row.token_ids), row.start + len(row.token_ids)) for row in rows if len(row.token_ids) > 1]
        return StepSizes(
            tokens=sum(counts),
            rows=len(rows) - len(chunks),
            chunks=len(chunks),
            chunk_tiles=len(chunk_tiles([count for count, _ in chunks], [context for _, context in chunks])),
            sampled=sum(row.samples for row in rows),
            lora_tiles=0 if lora is None else _room(lora.num_tiles),
            indexed=True,
            table_blocks=self._table_blocks,
        )

    def _lora(self, rows: Sequence[Row]) -> _Lora | None:
        slots = {row.slot for row in rows if row.slot != BASE_SLOT}
        if not slots:
            return None
        owned = {slot: self._pool.ready(slot) for slot in slots}
        segments = build_segments(
            [row.slot for row in rows],
            [len(row.token_ids) for row in rows],
            owned,
            {slot: self._pool.modules(slot) for slot in slots},
        )
        if not segments.max_rank:
            return None  # adapters whose weights change nothing
        groups = 0
        for slot in slots:
            groups |= self._pool.group_bits(slot)
        tile_rows = tile_rows_for(segments)
        num_tiles = sum(cdiv(one.end - one.start, tile_rows) for one in segments.with_adapters())
        widths = (width for width in RANK_WIDTHS if width >= segments.max_rank)
        rank_width = next(widths, next_power_of_2(segments.max_rank))
        return _Lora(segments, tile_rows, num_tiles, groups, rank_width)


def _room(tiles: int) -> int:
    return cdiv(tiles, _TILE_ROOM) * _TILE_ROOM


def _pad(arrays: Mapping[str, npt.NDArray[Any]], first: int) -> None:
    """Makes rows of padding of all from `first` on: they read token 0 at position 0 and draw its best word."""
    arrays["places"][first:] = -1
    arrays["sources"][first:] = -1
    arrays["top_p"][first:] = 1.0
    for name in ("ids", "positions", "contexts", "seeds", "top_k", "draw_positions", "temperature", "min_p"):
        arrays[name][first:] = 0


def _write_sampling(arrays: Mapping[str, npt.NDArray[Any]], rows: Sequence[Row]) -> None:
    count = len(rows)
    samplings = [row.sampling for row in rows]
    arrays["temperature"][:count] = [sampling.temperature for sampling in samplings]
    arrays["top_k"][:count] = [sampling.top_k for sampling in samplings]
    arrays["top_p"][:count] = [sampling.top_p for sampling in samplings]
    arrays["min_p"][:count] = [sampling.min_p for sampling in samplings]
    arrays["seeds"][:count] = [row.seed for row in rows]
    arrays["draw_positions"][:count] = [len(row.history) for row in rows]
