"""A batch of plain records as tensors: built once a step, read by every layer.

The builder checks every row against its block table and the model's limits, because a wrong index here would read or
write another sequence's cache. What differs between kinds of attention is one `AttentionView` each.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from kernels.rope import rotary_table
from runtime.batch import Batch, Row
from runtime.errors import RunnerMisused
from runtime.layers.kv_cache import KVCache
from runtime.layers.lora import LoraPlan, LoraPlanner
from runtime.layers.rotary import inverse_frequency
from runtime.layers.view import AttentionView, PlacedRow, ViewBuilder
from runtime.models.attention_kinds import AttentionKind


@dataclass(frozen=True)
class StepInputs:
    """tokens, places: [tokens] int64. views: one per kind of attention. sampled: rows of the hidden states whose
    logits are wanted, None when all are, in order."""

    tokens: torch.Tensor
    places: torch.Tensor
    views: tuple[AttentionView, ...]
    sampled: torch.Tensor | None
    num_sampled: int
    lora: LoraPlan | None


class StepBuilder:
    """Knows the limits, the rotary tables and the cache; keeps nothing between steps."""

    def __init__(
        self,
        cache: KVCache,
        planner: LoraPlanner,
        kinds: Sequence[AttentionKind],
        *,
        head_dim: int,
        vocab_size: int,
        max_positions: int,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        self._cache, self._planner = cache, planner
        ropes = tuple(dict.fromkeys(kind.rope for kind in kinds))
        self._tables = tuple(
            rotary_table(inverse_frequency(rope, head_dim).to(device), max_positions, rope.amplitude) for rope in ropes
        )
        self._views = tuple((ropes.index(kind.rope), ViewBuilder(cache, kind.window, dtype, device)) for kind in kinds)
        self._vocab_size, self._max_positions, self._device = vocab_size, max_positions, device

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
        decode: list[PlacedRow] = []
        prefill: list[PlacedRow] = []
        size = self._cache.block_tokens
        for row in rows:
            first, count = len(tokens), len(row.token_ids)
            tokens.extend(row.token_ids)
            if count == 1:
                decode.append(PlacedRow(first, row))
                positions.append(row.start)
                places.append(row.block_table[row.start // size] * size + row.start % size)
            else:
                prefill.append(PlacedRow(first, row))
                span = range(row.start, row.start + count)
                positions.extend(span)
                places.extend(row.block_table[position // size] * size + position % size for position in span)
            if row.samples:
                sampled.append(first + count - 1)
        at = self._indices(positions)
        rotations = [(cos.index_select(0, at), sin.index_select(0, at)) for cos, sin in self._tables]
        return StepInputs(
            tokens=self._indices(tokens),
            places=self._indices(places),
            views=tuple(view.build(*rotations[rope], decode, prefill) for rope, view in self._views),
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

    def _indices(self, values: Sequence[int]) -> torch.Tensor:
        return torch.tensor(values, dtype=torch.int64, device=self._device)
