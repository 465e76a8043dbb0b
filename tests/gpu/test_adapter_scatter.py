"""The scatter at Llama-2-7B's widths, in few layers. `tests/kernels/test_gpu_tests.py` runs these interpreted."""

import pytest
import torch

from kernels.adapter_scatter import adapter_scatter
from tests.kernels.replay import captured
from tests.kernels.scatter_cases import Pools, check_rows, make_adapter, make_pools, scatter, table_of

DEVICE, POOL_DTYPE = torch.device("cuda"), torch.bfloat16
SHAPES = [(4096, (4096, 4096, 4096)), (4096, (4096,)), (4096, (11008, 11008)), (11008, (4096,))]
LAYERS, ROWS, SLOTS, RANK = 4, 512, 32, 64


def _pools() -> Pools:
    return make_pools(DEVICE, POOL_DTYPE, SHAPES, LAYERS, ROWS, SLOTS)


def _ranks(kind: str) -> dict[tuple[int, int], int]:
    if kind == "everything":
        return {(layer, module): RANK - RANK // 8 * (module % 3) for layer in range(LAYERS) for module in range(7)}
    return {(layer, module): RANK // 8 for layer in range(1, LAYERS) for module in (0, 2)}


@pytest.mark.parametrize("file", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("kind", ["everything", "query and value"])
def test_a_packed_adapter_reaches_every_layer(file: torch.dtype, kind: str) -> None:
    pools = _pools()
    adapter = make_adapter(pools, file, _ranks(kind))
    scatter(pools, adapter, SLOTS - 1, ROWS - adapter.rank)
    check_rows(pools, adapter, SLOTS - 1, ROWS - adapter.rank)
    assert pools.flag.tolist() == [0]


def test_a_graph_scatters_other_adapters() -> None:
    pools = _pools()
    first = make_adapter(pools, torch.float16, _ranks("everything"))
    second = make_adapter(pools, torch.float16, _ranks("query and value"))
    staging, table = first.staging.clone(), table_of(pools, first, 3, 0)

    def launch() -> torch.Tensor:
        adapter_scatter(staging, table, pools.groups, pools.scaling, pools.flag)
        return pools.flag

    replay = captured(launch, DEVICE.type)
    for adapter, slot in ((second, 7), (first, 3), (second, 3)):
        for pool in [pool for group in pools.groups for pool in (group.a, group.b)]:
            pool.fill_(float("nan"))
        staging[: adapter.staging.numel()] = adapter.staging
        table.copy_(table_of(pools, adapter, slot, 5))
        assert replay().tolist() == [0]
        check_rows(pools, adapter, slot, 5)


@pytest.mark.parametrize("file", [torch.bfloat16, torch.float32])
def test_what_is_not_finite_is_flagged(file: torch.dtype) -> None:
    pools = _pools()
    adapter = make_adapter(pools, file, _ranks("query and value"))
    for place in (0, adapter.staging.numel() // 2, -1):
        damaged = adapter.staging.clone()
        damaged[place] = float("inf")
        table = table_of(pools, adapter, 0, 0)
        pools.flag.zero_()
        adapter_scatter(damaged, table, pools.groups, pools.scaling, pools.flag)
        assert pools.flag.tolist() == [1]
