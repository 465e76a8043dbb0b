"""The device's pool of rank rows: where adapters live while batches use them.

For each layer and projection group, with the group's modules as slices:

    a  [slices, rows, in]    b  [rows, out of all slices]    scaling  [slots, slices] fp32

An adapter owns rows offset .. offset + rank - 1, the same in every layer and group, so a slot is two integers and
mixed ranks waste nothing. Who gets which rows is decided by `runtime/slots.py`; this holds the numbers.

A slot is EMPTY, LOADING (some layers written) or READY. Every weight is checked to be finite once it has the pool's
dtype: an adapter that is not would only make its own answers fail, one by one, and nobody would know why.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from kernels.adapter_scatter import PoolGroup
from kernels.segments import SlotRows
from runtime.errors import AdapterInvalid, RunnerMisused
from storage.geometry import GROUPS, MODULES, Geometry
from storage.packed import AdapterDtype, Packed, PackedEntry

TORCH_DTYPES: Final[dict[AdapterDtype, torch.dtype]] = {
    "float32": torch.float32,
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
}


class GroupShape(NamedTuple):
    """One projection group: where its modules start in `MODULES`, its input width and the widths of its slices."""

    name: str
    first_module: int
    in_features: int
    slices: tuple[int, ...]


class GroupWeights(NamedTuple):
    """Views of the pool for one layer and group; shapes above."""

    a: torch.Tensor
    b: torch.Tensor
    scaling: torch.Tensor


@dataclass
class _Slot:
    """modules: a bit for each of `MODULES` that the adapter has in some layer; group_bits: likewise, by group."""

    rows: SlotRows
    next_layer: int
    modules: int
    group_bits: int


class AdapterPool:
    """Rank rows and scalings of all slots. Not thread-safe: the engine thread owns it."""

    def __init__(self, geometry: Geometry, rows: int, max_slots: int, dtype: torch.dtype, device: torch.device) -> None:
        self.geometry = geometry
        self.num_rows = rows
        self.max_slots = max_slots
        self.dtype = dtype
        self.device = device
        self.groups = group_shapes(geometry)
        layers = geometry.num_layers
        self._a = [
            torch.zeros((layers, len(group.slices), rows, group.in_features), dtype=dtype, device=device)
            for group in self.groups
        ]
        self._b = [torch.zeros((layers, rows, sum(group.slices)), dtype=dtype, device=device) for group in self.groups]
        self._scaling = torch.zeros((layers, max_slots, len(MODULES)), device=device)
        self._weights = [[self._views(layer, group) for group in range(len(self.groups))] for layer in range(layers)]
        # [slot, layer, group]: whether the adapter has any module there
        self._touched = np.zeros((max_slots, layers, len(self.groups)), dtype=np.bool_)
        self._slots: dict[int, _Slot] = {}

    def weights(self, layer: int, group: int) -> GroupWeights:
        """The pool of one layer and group, by index into `groups`."""
        return self._weights[layer][group]

    def ready(self, slot: int) -> SlotRows:
        """The rows of a fully written slot. Raises RunnerMisused for any other."""
        state = self._slots.get(slot)
        if state is None or state.next_layer != self.geometry.num_layers:
            raise RunnerMisused(f"slot {slot} holds no complete adapter")
        return state.rows

    def modules(self, slot: int) -> int:
        """A bit for each of `MODULES` that the slot's adapter has in some layer; see `kernels.segments.Tile`."""
        return self._slots[slot].modules

    def group_bits(self, slot: int) -> int:
        """A bit for each of `groups` of which the slot's adapter has a module in some layer."""
        return self._slots[slot].group_bits

    @property
    def scaling(self) -> torch.Tensor:
        """[layers, slots, modules] fp32, over all groups."""
        return self._scaling

    @property
    def stacked(self) -> tuple[PoolGroup, ...]:
        """The pools over all layers, for `kernels/adapter_scatter.py`."""
        return tuple(PoolGroup(a, b, group.slices) for a, b, group in zip(self._a, self._b, self.groups, strict=True))

    def touched(self, layer: int, group: int) -> npt.NDArray[np.bool_]:
        """[max_slots], a view: which slots' adapters have a module there."""
        return self._touched[:, layer, group]

    def touched_by(self, slots: Sequence[int]) -> list[list[bool]]:
        """[layer][group]: whether any of these slots' adapters has a module there."""
        touched: list[list[bool]] = np.any(self._touched[list(slots)], axis=0).tolist()
        return touched

    def write(self, slot: int, row_offset: int, packed: Packed, first_layer: int, num_layers: int) -> None:
        """Copies layers first_layer .. first_layer + num_layers - 1; layers come in order, starting with 0.

        Raises AdapterInvalid when the adapter does not fit this base or is not finite (the slot is EMPTY then), and
        RunnerMisused when slot, rows or layers are out of range or out of order.
        """
        state = self._begin(slot, row_offset, packed, first_layer, num_layers)
        offset, rank = state.rows
        layers, rows = slice(first_layer, first_layer + num_layers), slice(offset, offset + rank)
        for a, b in zip(self._a, self._b, strict=True):
            a[layers, :, rows] = 0
            b[layers, rows] = 0
        entries = [entry for entry in packed.header.entries if layers.start <= entry.layer < layers.stop]
        if entries:
            self._copy(slot, offset, packed, entries)
        state.next_layer = layers.stop

    def reserve(self, slot: int, row_offset: int, packed: Packed) -> SlotRows:
        """The slot becomes LOADING for somebody who writes rows and scalings himself, and then calls `complete`.

        Raises as `write` does. Reads and writes nothing on the device.
        """
        return self._enter(slot, row_offset, packed, 0, self.geometry.num_layers).rows

    def complete(self, slot: int) -> None:
        """A reserved slot is READY. Raises RunnerMisused for any other."""
        state = self._slots.get(slot)
        if state is None or state.next_layer:
            raise RunnerMisused(f"slot {slot} is not reserved")
        state.next_layer = self.geometry.num_layers

    def release(self, slot: int) -> None:
        """The slot becomes EMPTY; its rows keep their numbers until somebody overwrites them."""
        self._slots.pop(slot, None)

    def _begin(self, slot: int, row_offset: int, packed: Packed, first_layer: int, num_layers: int) -> _Slot:
        state = self._enter(slot, row_offset, packed, first_layer, num_layers)
        if first_layer == 0:
            self._touched[slot] = False
            self._scaling[:, slot] = 0
        return state

    def _enter(self, slot: int, row_offset: int, packed: Packed, first_layer: int, num_layers: int) -> _Slot:
        if packed.header.geometry != self.geometry:
            raise AdapterInvalid(f"adapter made for {packed.header.geometry}, this base is {self.geometry}")
        rank, last = packed.header.rank, first_layer + num_layers
        if not 0 <= slot < self.max_slots or row_offset < 0 or row_offset + rank > self.num_rows:
            raise RunnerMisused(f"slot {slot}, rows {row_offset}..{row_offset + rank}: outside the pool")
        if num_layers < 1 or first_layer < 0 or last > self.geometry.num_layers:
            raise RunnerMisused(f"layers {first_layer}..{last} of {self.geometry.num_layers}")
        rows = SlotRows(row_offset, rank)
        if first_layer == 0:
            self._slots[slot] = _Slot(rows, 0, *self._bits(packed))
        state = self._slots.get(slot)
        if state is None or state.rows != rows or state.next_layer != first_layer:
            raise RunnerMisused(f"slot {slot}: layer {first_layer} out of order")
        return state

    def _copy(self, slot: int, row_offset: int, packed: Packed, entries: list[PackedEntry]) -> None:
        """One copy of the entries' bytes to the device, then from there to the pool."""
        dtype = TORCH_DTYPES[packed.header.dtype]
        begin, end = entries[0].offset_a, self._end(entries[-1], dtype.itemsize)
        staging = torch.empty(end - begin, dtype=torch.uint8)
        staging.numpy()[:] = np.frombuffer(packed.payload, np.uint8, end - begin, begin)
        values = staging.to(self.device).view(dtype).to(self.dtype)
        largest = float(np.finfo(np.float32).max)
        if not bool(torch.isfinite(values).all()) or any(abs(entry.scaling) > largest for entry in entries):
            self.release(slot)
            raise AdapterInvalid(f"the adapter has values that are not finite in {self.dtype}")
        for entry in entries:
            module = MODULES.index(entry.module)
            index, group = next(
                (i, g) for i, g in enumerate(self.groups) if 0 <= module - g.first_module < len(g.slices)
            )
            part = module - group.first_module
            out_features, column = group.slices[part], sum(group.slices[:part])
            rows = slice(row_offset, row_offset + entry.rank)
            start_a, start_b = (entry.offset_a - begin) // dtype.itemsize, (entry.offset_b - begin) // dtype.itemsize
            a = values[start_a : start_a + entry.rank * group.in_features]
            b = values[start_b : start_b + entry.rank * out_features]
            self._a[index][entry.layer, part, rows] = a.view(entry.rank, group.in_features)
            self._b[index][entry.layer, rows, column : column + out_features] = b.view(entry.rank, out_features)
            self._scaling[entry.layer, slot, module] = entry.scaling
            self._touched[slot, entry.layer, index] = True

    def _bits(self, packed: Packed) -> tuple[int, int]:
        modules = sum(1 << MODULES.index(name) for name in {entry.module for entry in packed.header.entries})
        groups = 0
        for index, group in enumerate(self.groups):
            groups |= bool(modules >> group.first_module & (1 << len(group.slices)) - 1) << index
        return modules, groups

    def _end(self, entry: PackedEntry, itemsize: int) -> int:
        return entry.offset_b + entry.rank * self.geometry.shape(entry.module)[0] * itemsize

    def _views(self, layer: int, group: int) -> GroupWeights:
        shape = self.groups[group]
        columns = slice(shape.first_module, shape.first_module + len(shape.slices))
        return GroupWeights(self._a[group][layer], self._b[group][layer], self._scaling[layer, :, columns])


def group_shapes(geometry: Geometry) -> tuple[GroupShape, ...]:
    """The groups of a base in pool order."""
    shapes, first = [], 0
    for name, modules in GROUPS.items():
        slices = tuple(geometry.shape(module)[0] for module in modules)
        shapes.append(GroupShape(name, first, geometry.shape(modules[0])[1], slices))
        first += len(modules)
    return tuple(shapes)
