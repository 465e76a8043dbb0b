"""A batch of plain records as tensors: built once a step, read by every layer.

Rows have been checked (`row_limits.py`). What differs between kinds of attention is one `AttentionView` each.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from runtime.batch import Row
from runtime.layers.adapter_pool import AdapterPool
from runtime.layers.kv_cache import KVCache
from runtime.layers.lora import LoraPlan, plan_lora
from runtime.layers.rotary import Rotations
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
    """Knows the rotary tables, the cache and the pool; keeps nothing between steps."""

    def __init__(
        self,
        cache: KVCache,
        pool: AdapterPool,
        kinds: Sequence[AttentionKind],
        rotations: Rotations,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        self._cache, self._pool, self._rotations, self._device = cache, pool, rotations, device
        self._views = tuple(ViewBuilder(cache, kind.window, dtype, device) for kind in kinds)

    def build(self, rows: Sequence[Row]) -> StepInputs:
        """Also clears the blocks that the step enters. Raises RunnerMisused for a slot that is not READY."""
        lora = plan_lora(self._pool, [row.slot for row in rows], [len(row.token_ids) for row in rows])
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
        turns = [(cos.index_select(0, at), sin.index_select(0, at)) for cos, sin in self._rotations.tables]
        return StepInputs(
            tokens=self._indices(tokens),
            places=self._indices(places),
            views=tuple(
                view.build(*turns[rope], decode, prefill)
                for rope, view in zip(self._rotations.of_kind, self._views, strict=True)
            ),
            sampled=None if len(sampled) == len(tokens) else self._indices(sampled),
            num_sampled=len(sampled),
            lora=lora,
        )

    def _entered(self, row: Row) -> tuple[int, ...]:
        """The row's last block, when the step writes its first cell but not its last one."""
        size, end = self._cache.block_tokens, row.start + len(row.token_ids)
        last = (end - 1) // size
        return (row.block_table[last],) if row.start <= last * size and end % size else ()

    def _indices(self, values: Sequence[int]) -> torch.Tensor:
        return torch.tensor(values, dtype=torch.int64, device=self._device)
