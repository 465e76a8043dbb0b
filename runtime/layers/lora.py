"""How a step applies its adapters: planned once, then added to the output of every projection of every layer.

Two forms compute the same sums. *Stacked* (`kernels/lora_stacked.py`) puts all active adapters through two matrix
products, for decode steps; *segmented* (`lora_shrink`, `lora_expand`) goes through the adapters one by one, for steps
with many tokens. The stacked weights are copies, packed: of the adapters that a stacked step used, at most three times
their bytes in the pool. They are kept while steps use no other adapters and at least half of their rows, so that an
answer's end costs nothing. A newcomer's first steps copy a bounded number of bytes each, and what is not copied yet
goes the segmented way: copying all at once held up every sequence for 0.3 s with eight adapters on half a billion
weights.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Final

import torch

from kernels.lora_expand import lora_expand
from kernels.lora_shrink import lora_shrink
from kernels.lora_stacked import Stack, lora_stacked, stack_rows
from kernels.segments import BASE_SLOT, Segments, build_segments
from runtime.layers.adapter_pool import AdapterPool

# Multiply-adds per layer and segment up to which the stacked form wins, measured on two cores: 256 wide with 1, 3 and 8
# adapters of rank 8 and 4 to 128 tokens each, and single groups 2048 wide. A product costs some 15 us a call in bf16
# whatever its size, 4 us in fp32, and there the stacked form's extra arithmetic is dearer.
STACK_LIMIT: Final = {torch.float32: 12e6, torch.bfloat16: 50e6, torch.float16: 50e6}


# Copied and packed in about 60 ms on two cores: less a step would leave more steps to the slower way.
COPY_BYTES_PER_STEP: Final = 64 * 1024**2
LEAST_USED: Final = 0.5


class StackedAdapters:
    """The stacks of one set of slots, made per layer and group when used, COPY_BYTES_PER_STEP a step."""

    def __init__(self, pool: AdapterPool, slots: tuple[int, ...]) -> None:
        self._pool = pool
        self._slots = slots
        self._generations = [pool.generations[slot] for slot in slots]
        ranges = [pool.ready(slot) for slot in slots]
        self.num_rows = sum(rank for _, rank in ranges)
        rows = [row for offset, rank in ranges for row in range(offset, offset + rank)]
        owners = [slot for slot, (_, rank) in zip(slots, ranges, strict=True) for _ in range(rank)]
        self._rows = torch.tensor(rows, device=pool.device)
        self._owners = torch.tensor(owners, device=pool.device)
        self._touched = pool.touched_by(slots)
        self._stacks: dict[tuple[int, int], Stack] = {}
        self._allowance = 0

    def serves(self, slots: tuple[int, ...], num_rows: int) -> bool:
        """True when these slots, with so many rows in all, can use this set without much waste."""
        known = dict(zip(self._slots, self._generations, strict=True))
        fresh = all(known.get(slot) == self._pool.generations[slot] for slot in slots)
        return fresh and num_rows >= LEAST_USED * self.num_rows

    @property
    def is_single(self) -> bool:
        """One adapter only, whose rows are nobody's foreign rows."""
        return len(self._slots) == 1

    def stepped(self) -> None:
        """One more step will use this set."""
        self._allowance = COPY_BYTES_PER_STEP

    def touches(self, layer: int, group: int) -> bool:
        """Whether an adapter of the set has a module there."""
        return self._touched[layer][group]

    def stack(self, layer: int, group: int) -> Stack | None:
        """None when it is not copied yet and this step has copied enough. Every step may copy at least one."""
        stack = self._stacks.get((layer, group))
        if stack is None and self._allowance > 0:
            weights = self._pool.weights(layer, group)
            scaling = weights.scaling.index_select(0, self._owners).T
            slices = self._pool.groups[group].slices
            stack = stack_rows(weights.a, weights.b, slices, self._rows, scaling).packed()
            self._stacks[layer, group] = stack
            self._allowance -= stack.num_bytes
        return stack

    def foreign(self, token_slots: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Per number of slices (1, 2, 3): [tokens, slices * rows], True where the row is not the token's own."""
        single = token_slots[:, None] != self._owners[None, :]
        return single, single.repeat(1, 2), single.repeat(1, 3)


class StackedPlan:
    """One step in the stacked form, where that is there. The first `first` tokens are the base's."""

    def __init__(
        self,
        adapters: StackedAdapters,
        first: int,
        foreign: tuple[torch.Tensor, ...] | None,
        segmented: Callable[[], "SegmentedPlan"],
    ) -> None:
        self._adapters, self._first, self._foreign = adapters, first, foreign
        self._segmented = functools.cache(segmented)

    def add(self, layer: int, group: int, num_slices: int, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        """y and the adapters' part, as a new tensor or as y itself; x [tokens, in], y [tokens, out]."""
        if not self._adapters.touches(layer, group):
            return y
        stack = self._adapters.stack(layer, group)
        if stack is None:
            return self._segmented().add(layer, group, num_slices, x, y)
        foreign = None if self._foreign is None else self._foreign[num_slices - 1]
        if not self._first:
            return lora_stacked(x, stack, foreign, y)
        ours = y[self._first :]
        total = lora_stacked(x[self._first :], stack, foreign, ours)
        if total is not ours:
            ours.copy_(total)
        return y


class SegmentedPlan:
    """One step in the segmented form."""

    def __init__(self, pool: AdapterPool, segments: Segments) -> None:
        self._pool, self._segments = pool, segments
        self._touched = pool.touched_by(tuple({segment.slot for segment in segments.with_adapters()}))

    def add(self, layer: int, group: int, num_slices: int, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        """y, changed in place by the adapters' part; x [tokens, in], y [tokens, out]."""
        if not self._touched[layer][group]:
            return y
        weights = self._pool.weights(layer, group)
        h = lora_shrink(x, weights.a, self._segments)
        lora_expand(h, weights.b, weights.scaling, self._pool.groups[group].slices, self._segments, y)
        return y


LoraPlan = StackedPlan | SegmentedPlan


class LoraPlanner:
    """Turns the slots of a step into a plan; owns the one cached set of stacks."""

    def __init__(self, pool: AdapterPool) -> None:
        self._pool = pool
        self._cached: StackedAdapters | None = None
        # What one stacked rank row costs per token and layer, over all groups.
        self._width = sum(len(group.slices) * (group.in_features + sum(group.slices)) for group in pool.groups)

    def plan(self, slots: Sequence[int], counts: Sequence[int]) -> LoraPlan | None:
        """For batch rows in slot order with their token counts; None when all of them are the base's.

        Raises RunnerMisused when a slot is not READY.
        """
        active = sorted({slot for slot in slots if slot != BASE_SLOT})
        rows = {slot: self._pool.ready(slot) for slot in active}
        segments = build_segments(slots, counts, rows)
        used = list(segments.with_adapters())
        if not used:
            return None
        tokens = segments.num_tokens - used[0].start
        num_rows = sum(rank for _, rank in rows.values())
        if tokens * num_rows * self._width > len(used) * STACK_LIMIT[self._pool.dtype]:
            return SegmentedPlan(self._pool, segments)
        adapters = self._stacks(tuple(active), num_rows)
        adapters.stepped()
        return self._stacked(adapters, segments, used[0].start)

    def _stacks(self, active: tuple[int, ...], num_rows: int) -> StackedAdapters:
        if self._cached is None or not self._cached.serves(active, num_rows):
            self._cached = None  # the old copies go before the new ones come
            self._cached = StackedAdapters(self._pool, active)
        return self._cached

    def _stacked(self, adapters: StackedAdapters, segments: Segments, first: int) -> StackedPlan:
        segmented = functools.partial(SegmentedPlan, self._pool, segments)
        if adapters.is_single and len(segments.slots) - (segments.slots[0] == BASE_SLOT) == 1:
            return StackedPlan(adapters, first, None, segmented)
        token_slots = [
            slot
            for slot, start, end in zip(segments.slots, segments.starts, segments.starts[1:], strict=False)
            for _ in range(max(start, first), end)
        ]
        return StackedPlan(
            adapters, first, adapters.foreign(torch.tensor(token_slots, device=self._pool.device)), segmented
        )
