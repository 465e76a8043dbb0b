"""The two loops of the CPU's kernels against float64, on odd sizes, in buffers that are NaN everywhere else."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kernels.cpu.rows import TALL, WIDE, ask_for, axpy, dot, narrow, stream_columns, widen
from kernels.cpu.tiles import BLOCK
from kernels.cpu.vectors import KINDS, LANES, MARKERS

DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}
NAN = float("nan")


class Island:
    """A matrix inside of a larger one that is NaN: what is read or written beside it shows."""

    def __init__(self, values: torch.Tensor) -> None:
        rows, columns = values.shape
        self.sea = torch.full((rows + 2, columns + 2 * LANES + 3), NAN, dtype=values.dtype)
        self.land = self.sea[1 : rows + 1, LANES + 1 : LANES + 1 + columns]
        self.land.copy_(values)

    @property
    def address(self) -> int:
        return self.land.data_ptr()

    @property
    def stride(self) -> int:
        return self.sea.stride(0) * self.sea.element_size()

    def assert_alone(self) -> None:
        """Nothing was written outside."""
        water = self.sea.clone()
        water[1 : self.land.shape[0] + 1, LANES + 1 : LANES + 1 + self.land.shape[1]] = NAN
        assert bool(water.isnan().all())


def random(*shape: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed + sum(shape))).to(dtype)


def woven(x: torch.Tensor, dtype: str) -> torch.Tensor:
    """As `tiles.weave` does it, on every row."""
    whole = x.shape[1] // BLOCK * BLOCK
    if dtype != "bfloat16":
        return x
    blocks = x[:, :whole].reshape(x.shape[0], -1, LANES, 2).transpose(2, 3).reshape(x.shape[0], whole)
    return torch.cat((blocks, x[:, whole:]), 1)


def dotted(x: torch.Tensor, w: torch.Tensor, kind: str, ahead: int = 0, then: int = 0) -> torch.Tensor:
    xs, ws, ys = Island(woven(x, kind)), Island(w), Island(torch.zeros(x.shape[0], w.shape[0]))
    dot(
        KINDS[kind][0], xs.address, xs.stride, len(x), ws.address, ws.stride, len(w), ys.address, ys.stride, x.shape[1],
        ahead, then, ws.stride,
    )  # fmt: skip
    ys.assert_alone()
    return ys.land


@settings(max_examples=60, deadline=None)
@given(
    dtype=st.sampled_from(sorted(DTYPES)),
    rows=st.integers(1, 19),
    columns=st.integers(1, 21),
    k=st.integers(1, 3 * BLOCK + 5),
    ahead=st.sampled_from([0, 64, 8192]),
    then=st.booleans(),
)
def test_dot_is_the_product(dtype: str, rows: int, columns: int, k: int, ahead: int, then: bool) -> None:
    x, w = random(rows, k), random(columns, k, dtype=DTYPES[dtype])
    found = dotted(x, w, dtype, ahead, w.data_ptr() if then else 0)
    wanted = x.double() @ w.double().T
    assert (found - wanted).abs().max() <= 1e-6 * k


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("k", [BLOCK - 1, 4 * BLOCK, 5 * BLOCK + 3])
def test_a_row_of_dot_has_the_same_bits_in_any_company(dtype: str, k: int) -> None:
    x, w = random(23, k), random(11, k, dtype=DTYPES[dtype])
    together = dotted(x, w, dtype)
    for rows in (1, 2, 3, 4, 7, 8, 9, 16):
        for first in range(23 - rows):
            assert torch.equal(dotted(x[first : first + rows], w, dtype), together[first : first + rows])
    for column in range(11):
        assert torch.equal(dotted(x, w[column : column + 1], dtype)[:, 0], together[:, column])


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("k", [1, LANES, BLOCK - 1, 4 * BLOCK, 5 * BLOCK + 3])
def test_narrow_weights_give_the_bits_of_widened_ones(dtype: str, k: int) -> None:
    x, w = random(23, k), random(11, k, dtype=DTYPES[dtype])
    for rows in (1, 2, 4, TALL, 23):
        found = dotted(x[:rows], w, f"float32-of-{dtype}", ahead=64)
        assert torch.equal(found, dotted(x[:rows], w.float(), "float32"))
    row = Island(torch.zeros(1, k))
    widen(KINDS[f"float32-of-{dtype}"][0], w.data_ptr(), row.address, k)
    row.assert_alone()
    assert torch.equal(row.land[0], w[0].float())


def test_asking_reads_nothing() -> None:
    """Not even where nobody may read: the last requests of a tile go beyond its weights."""
    ask_for(0, 4096)
    assert stream_columns(TALL, 12 * WIDE) == stream_columns(TALL + 5, 12 * WIDE) == 12
    assert stream_columns(1, 4) == stream_columns(2, 4) == 1
    assert stream_columns(1, 3) == 0


@settings(max_examples=60, deadline=None)
@given(
    dtype=st.sampled_from(sorted(DTYPES)),
    rows=st.integers(1, 9),
    columns=st.integers(1, 5 * LANES),
    count=st.integers(0, 20),
)
def test_axpy_adds_the_product(dtype: str, rows: int, columns: int, count: int) -> None:
    a, b = Island(random(rows, max(count, 1))), Island(random(max(count, 1), columns, dtype=DTYPES[dtype]))
    start = random(rows, columns, seed=5)
    y = Island(start)
    axpy(
        MARKERS[dtype], a.address, a.stride, rows, b.address, b.stride, y.address, y.stride, columns, count
    )  # fmt: skip
    y.assert_alone()
    wanted = start.double() + a.land[:, :count].double() @ b.land[:count].double()
    assert (y.land - wanted).abs().max() <= 1e-5
    single = Island(start[-1:])
    last = a.address + (rows - 1) * a.stride
    axpy(MARKERS[dtype], last, 0, 1, b.address, b.stride, single.address, single.stride, columns, count)
    assert torch.equal(single.land[0], y.land[-1])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("columns", [1, LANES - 1, LANES, 3 * LANES + 2])
def test_numbers_are_rounded_as_torch_rounds_them(dtype: str, columns: int) -> None:
    values = random(1, columns) * torch.tensor([1e-30, 1.0, 300.0, 1e20]).repeat(columns)[:columns]
    x, y = Island(values), Island(torch.zeros(1, columns, dtype=DTYPES[dtype]))
    narrow(MARKERS[dtype], x.address, y.address, columns)
    y.assert_alone()
    assert torch.equal(y.land, values.to(DTYPES[dtype]))
    back = Island(torch.zeros(1, columns))
    widen(MARKERS[dtype], y.address, back.address, columns)
    back.assert_alone()
    assert torch.equal(back.land, y.land.float())


def test_special_numbers_and_ties_of_bf16() -> None:
    bits = [0x7F800001, 0x7FFFFFFF, 0xFFC00000, 0x7F800000, 0xFF800000, 0x7F7FFFFF, 0x3F808000, 0x3F818000, 0x80000000]
    values = torch.from_numpy(np.array(bits, np.uint32).view(np.float32).copy())
    out = torch.zeros(len(bits), dtype=torch.bfloat16)
    narrow(MARKERS["bfloat16"], values.data_ptr(), out.data_ptr(), len(bits))
    assert torch.equal(out.isnan(), values.isnan())
    assert torch.equal(out[~out.isnan()], values.bfloat16()[~out.isnan()])
