"""Products of many rows have the bits of those of few, on odd sizes, in buffers that are NaN everywhere else."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kernels.cpu.many_rows import axpy_many, multiply, pack_group, pack_strips, packed_bytes
from kernels.cpu.panels import FOLD_ORDER, GROUPS, STRIP
from kernels.cpu.rows import axpy
from kernels.cpu.tiles import BLOCK
from kernels.cpu.vectors import KINDS, LANES, MARKERS
from tests.kernels.cpu.test_rows import DTYPES, NAN, Island, dotted, random, woven


def packed_product(x: torch.Tensor, w: torch.Tensor, dtype: str) -> torch.Tensor:
    """As `operations.project` and attention do it; what is packed begins as NaN."""
    rows, columns, k = len(x), len(w), x.shape[1]
    xs, ws, ys = Island(woven(x, dtype)), Island(w), Island(torch.zeros(rows, columns))
    strips, groups = (torch.full((packed_bytes(count, k) // 4 + LANES,), NAN) for count in (rows, columns))
    places = np.zeros(LANES, np.int64).ctypes
    for row in range(0, rows, LANES):
        target = strips.data_ptr() + packed_bytes(row, k)
        pack_strips(xs.address + row * xs.stride, xs.stride, min(LANES, rows - row), k, target, places.data)
    for column in range(0, columns, LANES):
        place, count = ws.address + column * ws.stride, min(LANES, columns - column)
        target = groups.data_ptr() + packed_bytes(column, k)
        pack_group(KINDS[dtype][0], place, ws.stride, count, k, target, places.data)
    for packed in (strips, groups):
        assert bool(packed[-LANES:].isnan().all())  # nothing was written behind
        assert not bool(packed[:-LANES].isnan().any())
    multiply(strips.data_ptr(), rows, groups.data_ptr(), columns, ys.address, ys.stride, k)
    ys.assert_alone()
    return ys.land


@settings(max_examples=60, deadline=None)
@given(
    dtype=st.sampled_from(sorted(DTYPES)),
    rows=st.integers(1, 3 * LANES + 1),
    columns=st.integers(1, 2 * GROUPS * LANES + 3),
    k=st.integers(1, 3 * BLOCK + 5),
)
def test_a_product_has_the_bits_of_dot(dtype: str, rows: int, columns: int, k: int) -> None:
    x, w = random(rows, k), random(columns, k, dtype=DTYPES[dtype])
    assert torch.equal(packed_product(x, w, dtype), dotted(x, w, dtype))


@pytest.mark.parametrize("dtype", DTYPES)
def test_long_sums_too(dtype: str) -> None:
    """Where another order would show in nearly every element, and numbers are of any size."""
    x, w = random(STRIP + 3, 1537), random(LANES + 5, 1537, dtype=DTYPES[dtype])
    x *= 10.0 ** torch.arange(-8, 9).repeat(91)[:1537]
    found = packed_product(x, w, dtype)
    assert torch.equal(found, dotted(x, w, dtype))
    assert not torch.equal(found, x @ w.float().T)  # or any order would do


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("k", [LANES - 1, 3 * BLOCK + LANES + 2])
def test_narrow_weights_give_the_bits_of_widened_ones(dtype: str, k: int) -> None:
    x, w = random(STRIP + 3, k), random(GROUPS * LANES + 5, k, dtype=DTYPES[dtype])
    assert torch.equal(packed_product(x, w, f"float32-of-{dtype}"), packed_product(x, w.float(), "float32"))


def test_the_fold_order_brings_partners_together() -> None:
    for level in range(len(FOLD_ORDER).bit_length() - 1):
        half, run = LANES >> (level + 1), 1 << level
        for start in range(0, LANES, 2 * run):
            first, second = FOLD_ORDER[start], FOLD_ORDER[start + run]
            assert second == first + half


@settings(max_examples=40, deadline=None)
@given(rows=st.integers(1, 15), columns=st.integers(1, 6 * LANES), count=st.integers(1, 20))
def test_axpy_of_many_rows_has_the_bits_of_axpy(rows: int, columns: int, count: int) -> None:
    a, b, start = Island(random(rows, count)), Island(random(count, columns)), random(rows, columns, seed=5)
    many, few = Island(start), Island(start)
    axpy_many(a.address, a.stride, rows, b.address, b.stride, many.address, many.stride, columns, count)
    axpy(
        MARKERS["float32"], a.address, a.stride, rows, b.address, b.stride, few.address, few.stride, columns, count
    )  # fmt: skip
    many.assert_alone()
    assert torch.equal(many.land, few.land)
