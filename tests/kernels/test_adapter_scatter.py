"""The scatter puts a packed adapter where the pool's layout says, byte by byte, in one launch."""

import io
import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kernels.adapter_scatter import ScatterEntry, adapter_scatter, num_jobs, scatter_table
from storage.geometry import MODULES, Geometry
from storage.packed import LoraMatrices, read_packed, write_packed
from tests.kernels.interpreter_memory import InterpreterMemory
from tests.kernels.scatter_cases import (
    TORCH_DTYPE,
    Adapter,
    Pools,
    check_rows,
    make_adapter,
    make_pools,
    scatter,
    table_of,
)

CPU = torch.device("cpu")
SMALL = [(12, (12, 4, 4)), (12, (12,)), (12, (20, 20)), (20, (12,))]
WIDE = [(32, (32, 16, 16)), (32, (32,)), (32, (48, 48)), (48, (32,))]
LAYERS, ROWS, SLOTS = 2, 20, 3
EVERYTHING = {(layer, module): 1 + module for layer in range(LAYERS) for module in range(7)}
QUERY_AND_VALUE = {(layer, module): 5 for layer in range(LAYERS) for module in (0, 2)}


def pools_of(shapes: list[tuple[int, tuple[int, ...]]] = SMALL, dtype: torch.dtype = torch.float32) -> Pools:
    return make_pools(CPU, dtype, shapes, LAYERS, ROWS, SLOTS)


@settings(max_examples=30, deadline=None)
@given(
    ranks=st.dictionaries(
        st.tuples(st.integers(0, LAYERS - 1), st.integers(0, 6)), st.integers(1, 7), min_size=1, max_size=14
    ),
    slot=st.integers(0, SLOTS - 1),
    row_offset=st.integers(0, ROWS - 7),
)
def test_the_reference_writes_the_matrices(ranks: dict[tuple[int, int], int], slot: int, row_offset: int) -> None:
    pools = pools_of()
    adapter = make_adapter(pools, torch.float32, dict(sorted(ranks.items())))
    scatter(pools, adapter, slot, row_offset)
    check_rows(pools, adapter, slot, row_offset)
    assert pools.flag.tolist() == [0]


@pytest.mark.parametrize("shapes", [SMALL, WIDE])
@pytest.mark.parametrize("ranks", [EVERYTHING, QUERY_AND_VALUE])
@pytest.mark.parametrize(
    ("file", "pool"), [(torch.float32, torch.float32), (torch.float32, torch.float16), (torch.float16, torch.float32)]
)
def test_one_launch_writes_the_matrices(
    interpreter: InterpreterMemory,
    shapes: list[tuple[int, tuple[int, ...]]],
    ranks: dict[tuple[int, int], int],
    file: torch.dtype,
    pool: torch.dtype,
) -> None:
    pools = pools_of(shapes, pool)
    adapter = make_adapter(pools, file, ranks)
    scatter(pools, adapter, 2, ROWS - adapter.rank)
    check_rows(pools, adapter, 2, ROWS - adapter.rank)
    assert (pools.flag.tolist(), interpreter.launches) == ([0], 1)
    assert interpreter.loaded_bytes["staging"] == adapter.staging.numel() * adapter.staging.element_size()


def test_a_file_of_ours_is_scattered(interpreter: InterpreterMemory) -> None:
    """The table comes from the header that `storage` writes and reads."""
    geometry = Geometry("llama", LAYERS, 12, 20, 3, 1, 4)
    generator = np.random.default_rng(1)
    matrices = [
        LoraMatrices(layer, module, 0.5 + layer, *(generator.standard_normal(shape).astype(np.float32) for shape in (
            (3, geometry.shape(module)[1]), (geometry.shape(module)[0], 3))))
        for layer, module in ((1, "down_proj"), (0, "q_proj"), (0, "v_proj"), (1, "gate_proj"))
    ]  # fmt: skip
    stream = io.BytesIO()
    write_packed(stream, geometry, "float32", matrices)
    packed = read_packed(stream.getvalue())
    entries = [
        ScatterEntry(e.layer, MODULES.index(e.module), e.rank, e.scaling, e.offset_a, e.offset_b)
        for e in packed.header.entries
    ]
    staging = torch.frombuffer(bytearray(packed.payload), dtype=TORCH_DTYPE[packed.header.dtype])
    adapter = Adapter(staging, entries, packed.header.rank, {
        (item.layer, MODULES.index(item.module)): (torch.from_numpy(item.a), torch.from_numpy(item.b.T.copy()))
        for item in matrices
    })  # fmt: skip
    pools = pools_of()
    scatter(pools, adapter, 1, 4)
    check_rows(pools, adapter, 1, 4)


def test_a_smaller_adapter_takes_over_rows_and_a_graphs_arguments(interpreter: InterpreterMemory) -> None:
    """Same buffers, other contents: what a graph that holds the launch would do."""
    pools = pools_of()
    first, second = make_adapter(pools, torch.float32, EVERYTHING), make_adapter(pools, torch.float32, QUERY_AND_VALUE)
    staging, table = first.staging.clone(), table_of(pools, first, 0, 3)
    adapter_scatter(staging, table, pools.groups, pools.scaling, pools.flag)
    check_rows(pools, first, 0, 3)
    for pool in [pool for group in pools.groups for pool in (group.a, group.b)]:
        pool[..., 3 + second.rank : 3 + first.rank, :] = float("nan")
    staging[: second.staging.numel()] = second.staging
    table.copy_(table_of(pools, second, 0, 3))
    adapter_scatter(staging, table, pools.groups, pools.scaling, pools.flag)
    check_rows(pools, second, 0, 3)


@pytest.mark.parametrize("kernel", [False, True])
@pytest.mark.parametrize(
    ("value", "pool", "flagged"),
    [
        (math.inf, torch.float32, True),
        (-math.inf, torch.float32, True),
        (math.nan, torch.float32, True),
        (1e6, torch.float32, False),
        (1e6, torch.float16, True),
        (6e4, torch.float16, False),
    ],
)
def test_what_is_not_finite_in_the_pools_dtype_is_flagged(
    request: pytest.FixtureRequest, value: float, pool: torch.dtype, flagged: bool, kernel: bool
) -> None:
    if kernel:
        request.getfixturevalue("interpreter")
    pools = pools_of(dtype=pool)
    for place in (0, -1):
        adapter = make_adapter(pools, torch.float32, {(0, 3): 2, (1, 6): 1})
        adapter.staging[place] = value
        pools.flag.zero_()
        scatter(pools, adapter, 0, 0)
        assert pools.flag.tolist() == [int(flagged)]


BAD: dict[str, Callable[[Pools, Adapter], object]] = {
    "slot": lambda p, a: table_of(p, a, SLOTS, 0),
    "rows": lambda p, a: table_of(p, a, 0, ROWS - 4),
    "layer": lambda p, a: table_of(p, Adapter(a.staging, [ScatterEntry(LAYERS, 0, 1, 1, 0, 4)], 5, {}), 0, 0),
    "rank": lambda p, a: table_of(p, Adapter(a.staging, a.entries, 4, {}), 0, 0),
    "bytes": lambda p, a: scatter_table(p.groups, p.scaling, [ScatterEntry(0, 0, 1, 1, 2, 4)], 4, 0, 0, 5),
    "factor": lambda p, a: table_of(p, Adapter(a.staging, [ScatterEntry(0, 0, 1, 1e39, 0, 4)], 5, {}), 0, 0),
    "jobs": lambda p, a: adapter_scatter(a.staging, table_of(p, a, 0, 0)[:, 1:], p.groups, p.scaling, p.flag),
    "groups": lambda p, a: adapter_scatter(a.staging, table_of(p, a, 0, 0), p.groups[:3], p.scaling, p.flag),
    "flag": lambda p, a: adapter_scatter(a.staging, table_of(p, a, 0, 0), p.groups, p.scaling, p.flag.long()),
    "staging": lambda p, a: adapter_scatter(a.staging[None], table_of(p, a, 0, 0), p.groups, p.scaling, p.flag),
}


@pytest.mark.parametrize("bad", BAD)
def test_what_does_not_fit_is_refused(bad: str) -> None:
    pools = pools_of()
    adapter = make_adapter(pools, torch.float32, QUERY_AND_VALUE)
    with pytest.raises(ValueError, match="adapter_scatter"):
        BAD[bad](pools, adapter)


def test_jobs_are_the_bases() -> None:
    assert num_jobs(pools_of().groups) == LAYERS * 7 * 2
