"""What is asked of the scatter, for tests on any device: a packed file in, pools and scaling as its matrices say."""

from dataclasses import dataclass
from typing import Final

import torch

from kernels.adapter_scatter import PoolGroup, ScatterEntry, adapter_scatter, scatter_table

TORCH_DTYPE: Final = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
NAN: Final = float("nan")


@dataclass
class Adapter:
    """A payload and what its header says. matrices: (layer, module) to A [rank, in] and B transposed [rank, out]."""

    staging: torch.Tensor
    entries: list[ScatterEntry]
    rank: int
    matrices: dict[tuple[int, int], tuple[torch.Tensor, torch.Tensor]]


@dataclass
class Pools:
    """The pools of a base, with NaN in them, and what else the scatter writes."""

    groups: list[PoolGroup]
    scaling: torch.Tensor
    flag: torch.Tensor


def make_pools(
    device: torch.device,
    dtype: torch.dtype,
    shapes: list[tuple[int, tuple[int, ...]]],
    layers: int,
    rows: int,
    slots: int,
) -> Pools:
    """shapes: input width and slices of each group."""
    groups = [
        PoolGroup(
            torch.full((layers, len(slices), rows, in_features), NAN, dtype=dtype, device=device),
            torch.full((layers, rows, sum(slices)), NAN, dtype=dtype, device=device),
            slices,
        )
        for in_features, slices in shapes
    ]
    modules = sum(len(slices) for _, slices in shapes)
    scaling = torch.full((layers, slots, modules), NAN, device=device)
    return Pools(groups, scaling, torch.zeros(1, dtype=torch.int32, device=device))


def make_adapter(pools: Pools, dtype: torch.dtype, ranks: dict[tuple[int, int], int]) -> Adapter:
    """ranks: of the modules that it has, by (layer, module), in pool order."""
    device = pools.scaling.device
    generator = torch.Generator(device).manual_seed(sum(ranks.values()) + len(ranks))
    widths = [(group.a.shape[3], width) for group in pools.groups for width in group.slices]
    parts, entries, matrices, offset = list[torch.Tensor](), list[ScatterEntry](), {}, 0
    for (layer, module), rank in ranks.items():
        pair = tuple(torch.randn(rank, width, generator=generator, device=device).to(dtype) for width in widths[module])
        matrices[layer, module] = (pair[0], pair[1])
        offset_b = offset + pair[0].numel() * dtype.itemsize
        entries.append(ScatterEntry(layer, module, rank, 0.1 + layer + module / 8, offset, offset_b))
        parts += [part.reshape(-1) for part in pair]
        offset = offset_b + pair[1].numel() * dtype.itemsize
    return Adapter(torch.cat(parts), entries, max(ranks.values()), matrices)


def table_of(pools: Pools, adapter: Adapter, slot: int, row_offset: int) -> torch.Tensor:
    """On the pools' device."""
    itemsize = adapter.staging.element_size()
    table = scatter_table(pools.groups, pools.scaling, adapter.entries, itemsize, slot, row_offset, adapter.rank)
    return torch.from_numpy(table).to(pools.scaling.device)


def scatter(pools: Pools, adapter: Adapter, slot: int, row_offset: int) -> None:
    """One launch."""
    table = table_of(pools, adapter, slot, row_offset)
    adapter_scatter(adapter.staging, table, pools.groups, pools.scaling, pools.flag)


def check_rows(pools: Pools, adapter: Adapter, slot: int, row_offset: int) -> None:
    """The adapter's rows hold its matrices and zeros, its factors are there, and all else still holds NaN."""
    rows = slice(row_offset, row_offset + adapter.rank)
    scaling = torch.zeros_like(pools.scaling[:, slot])
    for entry in adapter.entries:
        scaling[entry.layer, entry.module] = entry.scaling
    assert torch.equal(pools.scaling[:, slot], scaling)
    module = 0
    for a, b, slices in pools.groups:
        column = 0
        for part, width in enumerate(slices):
            for layer in range(a.shape[0]):
                found_a = a[layer, part, rows]
                found_b = b[layer, rows, column : column + width]
                wanted = adapter.matrices.get((layer, module))
                rank = wanted[0].shape[0] if wanted else 0
                if wanted:
                    assert torch.equal(found_a[:rank], wanted[0].to(a.dtype))
                    assert torch.equal(found_b[:rank], wanted[1].to(a.dtype))
                assert not found_a[rank:].any()
                assert not found_b[rank:].any()
            column += width
            module += 1
        others = torch.ones(b.shape[1], dtype=torch.bool, device=b.device)
        others[rows] = False
        assert bool(a[:, :, others].isnan().all())
        assert bool(b[:, others].isnan().all())
