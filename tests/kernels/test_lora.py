"""Shrink and expand against plain float64 loops, over segments of every kind."""

from collections.abc import Callable
from typing import NamedTuple

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kernels.lora_expand import lora_expand
from kernels.lora_shrink import lora_shrink
from kernels.segments import BASE_SLOT, Segments, SlotRows, build_segments

NAN = float("nan")


class Case(NamedTuple):
    x: torch.Tensor
    a: torch.Tensor
    b: torch.Tensor
    scaling: torch.Tensor
    slices: tuple[int, ...]
    segments: Segments
    slots: dict[int, SlotRows]
    y: torch.Tensor


def make_case(rows: list[tuple[int, int]], ranks: list[int], slices: tuple[int, ...], dtype: torch.dtype) -> Case:
    """Pool rows that belong to nobody hold NaN, so that reading one shows."""
    generator = torch.Generator().manual_seed(len(rows) * 7 + sum(ranks))
    slots, offset = {}, 1
    for slot, rank in enumerate(ranks):
        slots[slot] = SlotRows(offset, rank)
        offset += rank + 1
    in_features, out_features = 23, sum(slices)
    a = torch.full((len(slices), offset, in_features), NAN, dtype=dtype)
    b = torch.full((offset, out_features), NAN, dtype=dtype)
    for start, rank in slots.values():
        a[:, start : start + rank] = torch.randn(len(slices), rank, in_features, generator=generator).to(dtype)
        b[start : start + rank] = torch.randn(rank, out_features, generator=generator).to(dtype)
    segments = build_segments([slot for slot, _ in rows], [count for _, count in rows], slots)
    return Case(
        x=torch.randn(segments.num_tokens, in_features, generator=generator).to(dtype),
        a=a,
        b=b,
        scaling=torch.rand(len(ranks), len(slices), generator=generator) * 3,
        slices=slices,
        segments=segments,
        slots=slots,
        y=torch.randn(segments.num_tokens, out_features, generator=generator).to(dtype),
    )


def expected(case: Case, rows: list[tuple[int, int]]) -> torch.Tensor:
    """y + scaling * (x A^T) B in float64, one token and slice at a time."""
    y = case.y.double().clone()
    token_slots = [slot for slot, count in rows for _ in range(count)]
    for token, slot in enumerate(token_slots):
        if slot == BASE_SLOT:
            continue
        offset, rank = case.slots[slot]
        column = 0
        for index, width in enumerate(case.slices):
            a, b = case.a[index, offset : offset + rank].double(), case.b[offset : offset + rank].double()
            h = a @ case.x[token].double() * case.scaling[slot, index].double()
            y[token, column : column + width] += h @ b[:, column : column + width]
            column += width
    return y


def segmented(case: Case) -> torch.Tensor:
    y = case.y.clone()
    h = lora_shrink(case.x, case.a, case.segments)
    lora_expand(h, case.b, case.scaling, case.slices, case.segments, y)
    return y


@settings(max_examples=60, deadline=None)
@given(
    rows=st.lists(st.tuples(st.sampled_from([BASE_SLOT, 0, 1, 2, 3]), st.integers(0, 6)), max_size=12),
    ranks=st.lists(st.sampled_from([1, 2, 7, 16]), min_size=4, max_size=4),
    slices=st.sampled_from([(19,), (8, 8), (16, 3, 5)]),
)
def test_any_mix_equals_the_loop(rows: list[tuple[int, int]], ranks: list[int], slices: tuple[int, ...]) -> None:
    case = make_case(rows, ranks, slices, torch.float32)
    found, wanted = segmented(case).double(), expected(case, rows)
    assert found.shape == wanted.shape
    assert (found - wanted).norm() <= 1e-5 * wanted.norm()


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.bfloat16, 1.5e-2), (torch.float16, 2e-3)])
def test_half_precision_is_near_the_loop(dtype: torch.dtype, tolerance: float) -> None:
    rows = [(BASE_SLOT, 2), (0, 1), (1, 3), (2, 1), (3, 4)]
    case = make_case(rows, [1, 8, 3, 16], (16, 3, 5), dtype)
    found, wanted = segmented(case).double(), expected(case, rows)
    assert (found - wanted).norm() <= tolerance * wanted.norm()


def test_rows_of_the_base_keep_every_bit() -> None:
    case = make_case([(BASE_SLOT, 3), (1, 2), (BASE_SLOT, 2)], [1, 4], (8, 8), torch.float32)
    found = segmented(case)
    assert torch.equal(found[:3], case.y[:3])
    assert torch.equal(found[5:], case.y[5:])
    assert not torch.equal(found[3:5], case.y[3:5])


@pytest.mark.parametrize(
    "call",
    [
        lambda c: lora_shrink(c.x[:, :-1], c.a, c.segments),
        lambda c: lora_shrink(c.x[:-1], c.a, c.segments),
        lambda c: lora_shrink(c.x.half(), c.a, c.segments),
        lambda c: lora_expand(lora_shrink(c.x, c.a, c.segments), c.b[:, 1:], c.scaling, c.slices, c.segments, c.y),
        lambda c: lora_expand(lora_shrink(c.x, c.a, c.segments), c.b, c.scaling, c.slices, c.segments, c.y[1:]),
        lambda c: lora_expand(lora_shrink(c.x, c.a, c.segments), c.b, c.scaling.half(), c.slices, c.segments, c.y),
    ],
)
def test_shapes_that_do_not_fit_are_refused(call: Callable[[Case], object]) -> None:
    with pytest.raises(ValueError, match="lora_"):
        call(make_case([(0, 2), (1, 3)], [2, 4], (8, 8), torch.float32))
