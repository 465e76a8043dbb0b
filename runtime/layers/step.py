"""A batch of plain records as tensors: built once a step, read by every layer.

Rows with one new token are decode rows and go through attention together; the others are prefill chunks, one each.
The builder checks every row against its block table and the model's limits, because a wrong index here would read or
write another sequence's cache.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from kernels.paged_attention import DecodeGroup, PrefillChunk, attention_mask
from kernels.rope import rotary_table
from runtime.batch import Batch, Row
from runtime.errors import RunnerMisused
from runtime.layers.kv_cache import KVCache
from runtime.layers.lora import LoraPlan, LoraPlanner

# Decode rows are padded to the longest context of their group. Splitting costs about three calls per layer and group,
# so it starts where padding more than doubles the cells to read, and a few cells never matter.
_PADDING_FACTOR = 2
_PADDING_FREE_BLOCKS = 64


@dataclass(frozen=True)
class StepInputs:
    """tokens, places: [tokens] int64. cos, sin: [tokens, 1, head_dim] fp32. sampled: rows of the hidden states whose
    logits are wanted, None when all are, in order."""

    tokens: torch.Tensor
    places: torch.Tensor
    cos: torch.Tensor
    sin: torch.Tensor
    decode: tuple[DecodeGroup, ...]
    prefill: tuple[PrefillChunk, ...]
    sampled: torch.Tensor | None
    num_sampled: int
    lora: LoraPlan | None


class StepBuilder:
    """Knows the limits, the rotary table and the cache; keeps nothing between steps."""

    def __init__(
        self,
        cache: KVCache,
        planner: LoraPlanner,
        inverse_frequency: torch.Tensor,
        *,
        vocab_size: int,
        max_positions: int,
        sliding_window: int | None,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        self._cache, self._planner = cache, planner
        self._cos, self._sin = rotary_table(inverse_frequency.to(device), max_positions)
        self._vocab_size, self._max_positions, self._window = vocab_size, max_positions, sliding_window
        self._dtype, self._device = dtype, device

    def build(self, batch: Batch) -> StepInputs:
        """Also clears the blocks that the step enters. Raises RunnerMisused."""
        rows = batch.rows
        self._check(rows)
        lora = self._planner.plan([row.slot for row in rows], [len(row.token_ids) for row in rows])
        entered = [block for row in rows for block in self._entered(row)]
        if entered:
            self._cache.clear(entered)
        tokens: list[int] = []
        positions: list[int] = []
        places: list[int] = []
        sampled: list[int] = []
        decode: list[tuple[int, Row]] = []
        prefill: list[PrefillChunk] = []
        size = self._cache.block_tokens
        for row in rows:
            first, count = len(tokens), len(row.token_ids)
            tokens.extend(row.token_ids)
            if count == 1:
                decode.append((first, row))
                positions.append(row.start)
                places.append(row.block_table[row.start // size] * size + row.start % size)
            else:
                prefill.append(self._chunk(first, row))
                span = range(row.start, row.start + count)
                positions.extend(span)
                places.extend(row.block_table[position // size] * size + position % size for position in span)
            if row.samples:
                sampled.append(first + count - 1)
        at = self._indices(positions)
        return StepInputs(
            tokens=self._indices(tokens),
            places=self._indices(places),
            cos=self._cos.index_select(0, at),
            sin=self._sin.index_select(0, at),
            decode=self._decode_groups(decode, len(tokens)),
            prefill=tuple(prefill),
            sampled=None if len(sampled) == len(tokens) else self._indices(sampled),
            num_sampled=len(sampled),
            lora=lora,
        )

    def _check(self, rows: Sequence[Row]) -> None:
        if not rows:
            raise RunnerMisused("a step without rows")
        size, last_slot = self._cache.block_tokens, rows[0].slot
        for row in rows:
            count, end = len(row.token_ids), row.start + len(row.token_ids)
            if row.slot < last_slot:
                raise RunnerMisused("rows are not ordered by slot")
            last_slot = row.slot
            if count < 1 or row.start < 0 or end > self._max_positions:
                raise RunnerMisused(f"sequence {row.sequence_id}: positions {row.start}..{end}")
            needed = -(-end // size)
            if len(row.block_table) < needed:
                raise RunnerMisused(f"sequence {row.sequence_id}: {len(row.block_table)} blocks, {needed} needed")
            if min(row.block_table) < 0 or max(row.block_table) >= self._cache.num_blocks:
                raise RunnerMisused(f"sequence {row.sequence_id}: a block outside the cache")
            if min(row.token_ids) < 0 or max(row.token_ids) >= self._vocab_size:
                raise RunnerMisused(f"sequence {row.sequence_id}: a token outside the vocabulary")

    def _entered(self, row: Row) -> tuple[int, ...]:
        """The row's last block, when the step writes its first cell but not its last one."""
        size, end = self._cache.block_tokens, row.start + len(row.token_ids)
        last = (end - 1) // size
        return (row.block_table[last],) if row.start <= last * size and end % size else ()

    def _chunk(self, first: int, row: Row) -> PrefillChunk:
        count = len(row.token_ids)
        context = row.start + count
        blocks = self._indices(row.block_table[: -(-context // self._cache.block_tokens)])
        if row.start == 0 and (self._window is None or count <= self._window):
            return PrefillChunk(first, first + count, context, blocks, None)
        last = torch.arange(row.start, context, device=self._device)
        mask = attention_mask(self._first_seen(last), last, context, self._dtype)
        return PrefillChunk(first, first + count, context, blocks, mask)

    def _decode_groups(self, rows: list[tuple[int, Row]], num_tokens: int) -> tuple[DecodeGroup, ...]:
        if not rows:
            return ()
        size = self._cache.block_tokens
        lengths = [row.start // size + 1 for _, row in rows]
        if max(lengths) * len(rows) <= _PADDING_FACTOR * sum(lengths) + _PADDING_FREE_BLOCKS:
            return (self._decode_group(rows, max(lengths), everything=len(rows) == num_tokens),)
        groups: dict[int, list[tuple[int, Row]]] = {}
        for length, item in zip(lengths, rows, strict=True):
            groups.setdefault((length - 1).bit_length(), []).append(item)
        return tuple(
            self._decode_group(group, max(row.start // size + 1 for _, row in group), everything=False)
            for group in groups.values()
        )

    def _decode_group(self, rows: list[tuple[int, Row]], width: int, *, everything: bool) -> DecodeGroup:
        size, blocks = self._cache.block_tokens, list[int]()
        for _, row in rows:
            used = row.start // size + 1
            blocks.extend(row.block_table[:used])
            blocks.extend([self._cache.empty_block] * (width - used))
        last = self._indices([row.start for _, row in rows])
        mask = attention_mask(self._first_seen(last), last, width * size, self._dtype)
        tokens = None if everything else self._indices([first for first, _ in rows])
        return DecodeGroup(tokens, self._indices(blocks), mask.view(len(rows), 1, 1, width * size))

    def _first_seen(self, last: torch.Tensor) -> torch.Tensor:
        return torch.zeros_like(last) if self._window is None else last - (self._window - 1)

    def _indices(self, values: Sequence[int]) -> torch.Tensor:
        return torch.tensor(values, dtype=torch.int64, device=self._device)
