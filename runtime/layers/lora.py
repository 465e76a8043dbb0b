"""How a step applies its adapters on torch: planned once, then added to the output of every projection.

The CPU's own kernels read the pool themselves (`models/cpu_program.py`).
"""

from collections.abc import Sequence

import torch

from kernels.lora_expand import lora_expand
from kernels.lora_shrink import lora_shrink
from kernels.segments import BASE_SLOT, Segments, build_segments
from runtime.layers.adapter_pool import AdapterPool


class LoraPlan:
    """The segments of one step over the pool."""

    def __init__(self, pool: AdapterPool, segments: Segments) -> None:
        self._pool, self._segments = pool, segments
        self._touched = pool.touched_by(tuple({segment.slot for segment in segments.with_adapters()}))

    def add(self, layer: int, group: int, x: torch.Tensor, y: torch.Tensor) -> None:
        """Adds the adapters' part to y [tokens, out]; x is [tokens, in]."""
        if not self._touched[layer][group]:
            return
        weights = self._pool.weights(layer, group)
        h = lora_shrink(x, weights.a, self._segments)
        lora_expand(h, weights.b, weights.scaling, self._pool.groups[group].slices, self._segments, y)


def plan_lora(pool: AdapterPool, slots: Sequence[int], counts: Sequence[int]) -> LoraPlan | None:
    """For batch rows in slot order with their token counts; None when all of them are the base's.

    Raises RunnerMisused when a slot is not READY.
    """
    rows = {slot: pool.ready(slot) for slot in set(slots) if slot != BASE_SLOT}
    return LoraPlan(pool, build_segments(slots, counts, rows)) if rows else None
