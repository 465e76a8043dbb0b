"""Shrink and expand: the reference against float64, and the kernels interpreted (tier 1 and 2; tier 4 has the same
bodies in `tests/gpu/test_sgmv.py`)."""

import itertools
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kernels.lora_expand import lora_expand
from kernels.lora_shrink import lora_shrink
from kernels.segments import BASE_SLOT, TILE_ROWS, SlotRows
from kernels.triton_jit import interpreting
from tests.kernels.interpreter_memory import InterpreterMemory
from tests.kernels.sgmv_cases import (
    POPULARITIES,
    RANKS,
    Case,
    buffers_for,
    check_case,
    check_replays,
    errors,
    expected,
    make_case,
    popularity,
    run,
)

CPU = torch.device("cpu")
BOTH = pytest.mark.parametrize("tile_rows", [1, TILE_ROWS])
# fp16 products are summed in fp32: what is left is the rounding of h (tiles of 16 only) and of y.
TOLERANCE = {torch.float32: 2e-6, torch.float16: 6e-4}


@pytest.fixture(autouse=True)
def few_programs(monkeypatch: pytest.MonkeyPatch) -> None:
    """The interpreter takes a millisecond for a program, even for one that ends at once."""
    monkeypatch.setattr("kernels.lora_shrink._PROGRAMS", 24)
    monkeypatch.setattr("kernels.lora_shrink._WORKERS", 5)


def rows_of(lengths: list[int], *, base: int = 0) -> list[tuple[int, int]]:
    """One segment per length, after `base` rows without adapter."""
    return [(BASE_SLOT, base), *enumerate(lengths)]


@given(
    rows=st.lists(st.tuples(st.sampled_from([BASE_SLOT, 0, 1, 2, 3]), st.integers(0, 20)), min_size=1, max_size=6),
    ranks=st.lists(st.sampled_from([1, 2, 7, 16]), min_size=4, max_size=4),
    slices=st.sampled_from([(19,), (8, 8), (16, 3, 5)]),
    owned=st.dictionaries(st.integers(0, 3), st.integers(0, 7)),
)
@settings(max_examples=60, deadline=None)
def test_the_reference_is_the_formula(
    rows: list[tuple[int, int]], ranks: list[int], slices: tuple[int, ...], owned: dict[int, int]
) -> None:
    case = make_case(CPU, torch.float32, 23, slices, ranks, rows, owned)
    y = case.y.clone()
    h = lora_shrink(case.x, case.a, case.segments)
    lora_expand(h, case.b, case.scaling, case.slices, case.segments, y)
    assert torch.allclose(y.double(), expected(case), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.bfloat16, 1e-2), (torch.float16, 1.5e-3)])
def test_the_reference_in_half_precision(dtype: torch.dtype, tolerance: float) -> None:
    case = make_case(CPU, dtype, 23, (16, 3, 5), [1, 8, 3, 16], [(BASE_SLOT, 2), (0, 1), (1, 3), (2, 1), (3, 4)])
    y = case.y.clone()
    lora_expand(lora_shrink(case.x, case.a, case.segments), case.b, case.scaling, case.slices, case.segments, y)
    assert errors(y, expected(case))[0] <= tolerance
    assert torch.equal(y[:2], case.y[:2])


@pytest.mark.parametrize(("tile_rows", "dtype"), [(1, torch.float16), (16, torch.float16), (16, torch.float32)])
@pytest.mark.parametrize("kind", POPULARITIES)
def test_popularities(interpreter: InterpreterMemory, kind: str, dtype: torch.dtype, tile_rows: int) -> None:
    lengths = popularity(kind, 18 if tile_rows > 1 else 9)
    ranks = [RANKS[index % 6] for index in range(len(lengths))]
    case = make_case(CPU, dtype, 48, (32, 16), ranks, rows_of(lengths, base=2))
    check_case(case, tile_rows, TOLERANCE[dtype])


@BOTH
@pytest.mark.parametrize("rank", RANKS)
def test_ranks(interpreter: InterpreterMemory, rank: int, tile_rows: int) -> None:
    case = make_case(CPU, torch.float32, 32, (32,), [rank, 8], [(0, 2), (1, 1)])
    check_case(case, tile_rows, TOLERANCE[torch.float32])


@BOTH
@pytest.mark.parametrize(
    ("in_features", "slices"), [(33, (31,)), (1, (1, 2, 1)), (130, (40, 7)), (2049, (129, 130, 1))]
)
def test_odd_sizes(interpreter: InterpreterMemory, in_features: int, slices: tuple[int, ...], tile_rows: int) -> None:
    case = make_case(CPU, torch.float32, in_features, slices, [5, 3], [(0, 1), (BASE_SLOT, 2), (1, 18)])
    check_case(case, tile_rows, TOLERANCE[torch.float32])


@BOTH
def test_empty_segments_and_base_rows_between(interpreter: InterpreterMemory, tile_rows: int) -> None:
    rows = [(BASE_SLOT, 3), (0, 0), (1, 2), (BASE_SLOT, 1), (2, 0), (3, 17), (BASE_SLOT, 4)]
    case = make_case(CPU, torch.float32, 24, (16, 8), [4, 8, 2, 16], rows)
    check_case(case, tile_rows, TOLERANCE[torch.float32])


@BOTH
def test_slices_that_an_adapter_lacks_are_not_read(interpreter: InterpreterMemory, tile_rows: int) -> None:
    case = make_case(CPU, torch.float32, 24, (16, 8, 8), [4, 4], [(0, 3), (1, 2)], owned={0: 0b101, 1: 0b010})
    offset, rank = case.slots[0]
    case.a[1, offset : offset + rank] = float("nan")
    case.b[offset : offset + rank, 16:24] = float("nan")
    check_case(case, tile_rows, TOLERANCE[torch.float32])
    kept = run(case, buffers_for(case, tile_rows).upload(case.segments))
    assert torch.equal(kept[:3, 16:24], case.y[:3, 16:24])


@BOTH
def test_a_step_takes_two_launches_and_the_base_none(interpreter: InterpreterMemory, tile_rows: int) -> None:
    case = make_case(CPU, torch.float32, 16, (16, 16, 16), [2, 3], [(0, 4), (1, 4)])
    run(case, buffers_for(case, tile_rows).upload(case.segments))
    assert interpreter.launches == 2
    case.rows = [(BASE_SLOT, 8)]
    assert torch.equal(run(case, buffers_for(case, tile_rows).upload(case.segments)), case.y)
    assert interpreter.launches == 2


@pytest.mark.parametrize(
    ("tile_rows", "rows", "reads"),
    [
        (1, [(0, 1)], {0: 1}),
        (1, [(0, 3), (1, 2)], {0: 3, 1: 2}),
        (16, [(0, 16), (1, 3)], {0: 1, 1: 1}),
        (16, [(0, 17)], {0: 2}),
    ],
)
def test_weights_are_read_once_a_tile_and_no_byte_more(
    interpreter: InterpreterMemory, tile_rows: int, rows: list[tuple[int, int]], reads: dict[int, int]
) -> None:
    case = make_case(CPU, torch.float32, 64, (40, 24), [8, 3], rows)
    run(case, buffers_for(case, tile_rows).upload(case.segments))
    ranks = sum(case.slots[slot].rank * count for slot, count in reads.items())
    assert interpreter.loaded_bytes["a"] == ranks * 64 * 2 * 4
    assert interpreter.loaded_bytes["b"] == ranks * 64 * 4


@BOTH
def test_static_buffers_serve_any_adapters(interpreter: InterpreterMemory, tile_rows: int) -> None:
    def step(rows: list[tuple[int, int]]) -> Case:
        return make_case(CPU, torch.float32, 24, (16, 8), [4, 16, 1, 9], rows)

    few, many = [(BASE_SLOT, 5), (1, 7)], [(BASE_SLOT, 1), (0, 2), (1, 2), (2, 3), (3, 4)]
    steps = [step(rows) for rows in ([(0, 6), (3, 6)], few, many, [(BASE_SLOT, 12)])]
    for other in steps[1:]:
        other.a, other.b, other.scaling = steps[0].a, steps[0].b, steps[0].scaling
    check_replays(steps, tile_rows)


@BOTH
def test_a_slot_is_used_again_by_a_smaller_rank(interpreter: InterpreterMemory, tile_rows: int) -> None:
    case = make_case(CPU, torch.float32, 24, (16,), [16, 2], [(0, 3), (1, 1)])
    case.slots[0] = SlotRows(case.slots[0].offset, 3)
    case.a[:, case.slots[0].offset + 3] = float("inf")
    check_case(case, tile_rows, TOLERANCE[torch.float32])


@BOTH
def test_the_last_slot_and_the_last_rows_of_a_pool(interpreter: InterpreterMemory, tile_rows: int) -> None:
    case = make_case(CPU, torch.float32, 24, (16,), [2] * 7 + [5], [(7, 4)], pool_rows=64)
    case.slots[7] = SlotRows(59, 5)
    case.a[:, 59:], case.b[59:] = torch.randn(1, 5, 24), torch.randn(5, 16)
    check_case(case, tile_rows, TOLERANCE[torch.float32])


@BOTH
@pytest.mark.parametrize("rows", [SlotRows(4, 1), SlotRows(0, 5)])
def test_a_pool_beyond_2_31_elements(rows: SlotRows, tile_rows: int) -> None:
    """Rows so far apart that the fifth begins after 2^31 elements; of these 4 GB only the rows become real memory."""
    case = make_case(CPU, torch.float16, 16, (16,), [rows.rank], [(0, 3)])
    distance, wanted = (1 << 29) + 16, expected(case)
    far = torch.empty(5 * distance, dtype=torch.float16).as_strided((2, 5, 16), (16, distance, 1))
    far[0, rows.offset :], far[1, rows.offset :] = case.a[0, 1 : 1 + rows.rank], case.b[1 : 1 + rows.rank]
    case.a, case.b, case.slots = far[:1], far[1], {0: rows}
    with interpreting():
        found = run(case, buffers_for(case, tile_rows).upload(case.segments))
    assert errors(found, wanted)[0] <= TOLERANCE[torch.float16]


@BOTH
def test_the_kernel_agrees_with_the_reference_in_the_same_dtype(tile_rows: int) -> None:
    case = make_case(CPU, torch.float16, 40, (24, 8), [3, 8, 16], [(0, 1), (1, 5), (BASE_SLOT, 1), (2, 17)])
    segments = buffers_for(case, tile_rows).upload(case.segments)
    reference = run(case, segments)
    with interpreting():
        found = run(case, segments)
    assert errors(found, reference.double())[0] <= 1e-3
    assert not torch.equal(found, case.y)


BAD: dict[str, Callable[[Case], object]] = {
    "width": lambda c: lora_shrink(c.x[:, :-1], c.a, c.segments),
    "tokens": lambda c: lora_shrink(c.x[:-1], c.a, c.segments),
    "dtype": lambda c: lora_shrink(c.x.half(), c.a, c.segments),
    "strides": lambda c: lora_shrink(c.x.T.contiguous().T, c.a, c.segments),
    "columns": lambda c: expand(c, b=c.b[:, 1:]),
    "y": lambda c: expand(c, y=c.y[1:]),
    "scaling": lambda c: expand(c, scaling=c.scaling.half()),
    "strides of y": lambda c: expand(c, y=c.y.T.contiguous().T),
    "slices": lambda c: expand(c, slices=(4, 4, 4, 4)),
}


def expand(
    case: Case,
    b: torch.Tensor | None = None,
    y: torch.Tensor | None = None,
    scaling: torch.Tensor | None = None,
    slices: tuple[int, ...] | None = None,
) -> None:
    h = torch.zeros(case.y.shape[0], len(slices or case.slices), 1, case.segments.max_rank)
    lora_expand(
        h,
        case.b if b is None else b,
        case.scaling if scaling is None else scaling,
        slices or case.slices,
        case.segments,
        case.y if y is None else y,
    )


@pytest.mark.parametrize("bad", BAD)
def test_what_does_not_fit_is_refused(bad: str) -> None:
    with pytest.raises(ValueError, match="lora_"):
        BAD[bad](make_case(CPU, torch.float32, 12, (8, 8), [2, 4], [(0, 2), (1, 3)]))


def test_host_segments_are_refused_on_a_device() -> None:
    case = make_case(CPU, torch.float32, 12, (8, 8), [2, 4], [(0, 2), (1, 3)])
    with interpreting():
        with pytest.raises(ValueError, match="DeviceSegments"):
            lora_shrink(case.x, case.a, case.segments)
        with pytest.raises(ValueError, match="DeviceSegments"):
            expand(case)


@pytest.mark.parametrize(("kind", "rows"), list(itertools.product(POPULARITIES, (1, 2, 7, 64))))
def test_popularities_have_all_rows(kind: str, rows: int) -> None:
    lengths = popularity(kind, rows)
    assert sum(lengths) == rows
    assert min(lengths) >= 1
