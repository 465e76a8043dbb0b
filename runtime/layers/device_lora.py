"""A projection group on a device: the base product, and what the step's adapters add to it.

    compute   ──●── base product ─────────────●── whoever reads it adds delta ──
    beside      └── shrink ── expand ── delta ┘

In a decode step both halves of the adapters' part run beside the base product, which reads far more, into a tensor of
zeros that all layers use in turn: rows without adapter and slices that an adapter lacks stay zero. So the adapters take
no time but for their bytes, and no kernel waits for them but the one that adds. Marks cost the host a little, which a
graph pays once; a mixed step is never a graph and may have thousands of rows, so there the expand adds to the product.
"""

from typing import NamedTuple

import torch

from kernels.lora_expand import lora_expand
from kernels.lora_shrink import beside_plan, empty_h, lora_shrink
from runtime.layers.adapter_pool import AdapterPool
from runtime.layers.device_step import DeviceStep
from runtime.layers.linear import LoraLinear
from runtime.queues import Queues


class Product(NamedTuple):
    """[tokens, out] each; what counts is the sum. delta is overwritten by the next layer's product."""

    base: torch.Tensor
    delta: torch.Tensor | None = None

    def joined(self) -> torch.Tensor:
        """The sum, for who takes one tensor; `base` changes."""
        return self.base if self.delta is None else self.base.add_(self.delta)


class DeviceLora:
    """The pool's adapters, for one step at a time."""

    def __init__(self, pool: AdapterPool, queues: Queues) -> None:
        self._pool, self._queues = pool, queues
        self._deltas: list[torch.Tensor | None] = [None] * len(pool.groups)

    def begin(self, step: DeviceStep, tokens: int) -> None:
        """Before the first product of a step of so many tokens."""
        groups = self._pool.groups
        self._deltas = [None] * len(groups)
        touched = [index for index in range(len(groups)) if self._touches(step, index)]
        if touched and step.is_decode:
            widths = [sum(groups[index].slices) for index in touched]
            zeros = torch.zeros(tokens * sum(widths), dtype=self._pool.dtype, device=self._pool.device)
            first = 0
            for index, width in zip(touched, widths, strict=True):
                self._deltas[index] = zeros[first : first + tokens * width].view(tokens, width)
                first += tokens * width

    def product(self, linear: LoraLinear, x: torch.Tensor, step: DeviceStep) -> Product:
        """x [tokens, in] times the group's weights, of the base and of the rows' adapters."""
        if step.segments is None or not self._touches(step, linear.group):
            return Product(_base(linear, x))
        weights, group = self._pool.weights(linear.layer, linear.group), self._pool.groups[linear.group]
        delta, first, segments = self._deltas[linear.group], group.first_module, step.segments
        if delta is None:
            y = _base(linear, x)
            h = lora_shrink(x, weights.a, segments, first)
            lora_expand(h, weights.b, weights.scaling, group.slices, segments, y, first)
            return Product(y)
        compute, beside = self._queues.compute, self._queues.beside
        plan = beside_plan(segments, len(group.slices))
        h = empty_h(x, weights.a, segments, plan)
        beside.after(compute.mark())
        # The product first: where it leaves processors idle, which is nearly always, the adapters' kernels take those.
        y = _base(linear, x)
        try:
            with beside.use():
                lora_shrink(x, weights.a, segments, first, plan, h)
                lora_expand(h, weights.b, weights.scaling, group.slices, segments, delta, first, adds=False)
        finally:
            # Also when one of them could not be launched: the other still reads x and h, whose memory is compute's.
            compute.after(beside.mark())
        return Product(y, delta)

    def _touches(self, step: DeviceStep, group: int) -> bool:
        return step.segments is not None and bool(step.groups >> group & 1)


def _base(linear: LoraLinear, x: torch.Tensor) -> torch.Tensor:
    return torch.nn.functional.linear(x, linear.weight, linear.bias)
