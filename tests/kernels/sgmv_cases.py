"""What is asked of shrink and expand, for tests on any device: the same bodies run interpreted at small sizes (tier 2)
and on a GPU at real ones (tier 4). On a CPU tensors lie between NaN, on a GPU they are plain."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final

import torch

from kernels.lora_expand import expand_plan, lora_expand
from kernels.lora_shrink import lora_shrink, shrink_plan
from kernels.segments import BASE_SLOT, DeviceSegments, SegmentBuffers, Segments, SlotRows, build_segments
from tests.kernels.padded import padded, padding_is_intact
from tests.kernels.replay import captured

RANKS: Final = (1, 3, 5, 8, 12, 16, 32, 64, 128)
POPULARITIES: Final = ("identical", "distinct", "uniform", "zipf", "skewed")
NAN: Final = float("nan")


def popularity(kind: str, rows: int) -> list[int]:
    """How many of the rows each adapter has, as in Punica's benchmark; zipf is geometric with 1.5."""
    if kind == "identical":
        return [rows]
    if kind == "distinct":
        return [1] * rows
    if kind == "skewed":
        return [1, rows - 1] if rows > 1 else [rows]
    if kind == "uniform":
        count = math.ceil(math.sqrt(rows))
        return [rows // count + (index < rows % count) for index in range(count)]
    lengths, left = list[int](), rows
    while left:
        lengths.append(max(1, left - int(left / 1.5)))
        left -= lengths[-1]
    return lengths


@dataclass
class Case:
    """One group of one step. rows: (slot, tokens) in batch order; owned: slices by slot (see `Tile.slices`)."""

    x: torch.Tensor
    a: torch.Tensor
    b: torch.Tensor
    scaling: torch.Tensor
    y: torch.Tensor
    slices: tuple[int, ...]
    rows: list[tuple[int, int]]
    slots: dict[int, SlotRows]
    owned: dict[int, int]

    @property
    def segments(self) -> Segments:
        return build_segments(
            [slot for slot, _ in self.rows], [count for _, count in self.rows], self.slots, self.owned
        )


def make_case(
    device: torch.device,
    dtype: torch.dtype,
    in_features: int,
    slices: tuple[int, ...],
    ranks: Sequence[int],
    rows: list[tuple[int, int]],
    owned: dict[int, int] | None = None,
    pool_rows: int | None = None,
) -> Case:
    """Slot i has rank ranks[i]; between the slots' rows, which nobody owns, the pool holds NaN.

    pool_rows: the adapters take the last rows of a pool of this size (default: just large enough).
    """
    generator = torch.Generator(device).manual_seed(len(rows) * 7 + sum(ranks) + in_features)
    needed = sum(ranks) + len(ranks) + 1
    slots, offset = dict[int, SlotRows](), (pool_rows or needed) - needed + 1
    for slot, rank in enumerate(ranks):
        slots[slot] = SlotRows(offset, rank)
        offset += rank + 1

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator, device=device)

    tokens, out_features = sum(count for _, count in rows), sum(slices)
    a = torch.empty((len(slices), pool_rows or needed, in_features), dtype=dtype, device=device)
    b = torch.empty((pool_rows or needed, out_features), dtype=dtype, device=device)
    a[:, -needed:], b[-needed:] = NAN, NAN
    for start, rank in slots.values():
        a[:, start : start + rank] = normal(len(slices), rank, in_features) / math.sqrt(in_features)
        b[start : start + rank] = normal(rank, out_features) / math.sqrt(rank)
    scaling = torch.rand((len(ranks), len(slices)), generator=generator, device=device) + 0.5
    x, y = normal(tokens, in_features).to(dtype), normal(tokens, out_features).to(dtype)
    if device.type == "cpu" and pool_rows is None:
        x, y = padded(x, gap=3), padded(y, gap=5)
        a, b, scaling = padded(a, gap=2), padded(b, gap=1), padded(scaling, gap=1)
    return Case(x, a, b, scaling, y, slices, rows, slots, owned or {})


def expected(case: Case) -> torch.Tensor:
    """y + scaling * (x A^T) B in float64, segment by segment."""
    y = case.y.double().clone()
    for segment in case.segments.tiles():
        tokens, rows, column = segment.places, segment.rows, 0
        for index, width in enumerate(case.slices):
            if segment.has(index):
                h = case.x[tokens].double() @ case.a[index, rows].double().T
                h *= case.scaling[segment.slot, index].double()
                y[tokens, column : column + width] += h @ case.b[rows, column : column + width].double()
            column += width
    return y


def buffers_for(case: Case, tile_rows: int, *, max_tokens: int = 0, max_slots: int = 0) -> SegmentBuffers:
    """Just large enough, or as large as said."""
    tokens, rank = sum(count for _, count in case.rows), max(row.rank for row in case.slots.values())
    return SegmentBuffers(
        max(tokens, max_tokens), max(len(case.slots), max_slots), rank, tile_rows, case.x.device
    )  # fmt: skip


def run(case: Case, segments: DeviceSegments, early: int | None = None, *, adds: bool = True) -> torch.Tensor:
    """The adapters added to a copy of y, or written into it. What the kernels allocate starts as NaN, so that a gap in
    h shows.

    early: as in the plans, instead of theirs.
    """
    shrink = shrink_plan(segments, len(case.slices), case.x.shape[1])
    expand = expand_plan(segments, case.slices)
    if early is not None:
        shrink, expand = shrink._replace(early=early), expand._replace(early=early)
    y = case.y.clone() if case.y.is_cuda else padded(case.y, gap=5)
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        h = lora_shrink(case.x, case.a, segments, plan=shrink)
        lora_expand(h, case.b, case.scaling, case.slices, segments, y, plan=expand, adds=adds)
    finally:
        torch.use_deterministic_algorithms(before)
    return y


def errors(found: torch.Tensor, wanted: torch.Tensor) -> tuple[float, float]:
    """Norm-relative, of the whole and of the worst row."""
    difference = found.double() - wanted
    rows = difference.norm(dim=1) / wanted.norm(dim=1).clamp_min(1e-30)
    return float(difference.norm() / wanted.norm()), float(rows.max())


def check_case(case: Case, tile_rows: int, tolerance: float) -> None:
    """The result is near float64's, base rows and everything around keep every bit, and a second run gives the same."""
    segments = buffers_for(case, tile_rows).upload(case.segments)
    found = run(case, segments)
    assert bool(found.isfinite().all())
    whole, worst = errors(found, expected(case))
    assert whole <= tolerance, f"off by {whole}"
    assert worst <= 3 * tolerance, f"a row is off by {worst}"
    first = 0
    for slot, count in case.rows:
        if slot == BASE_SLOT:
            assert torch.equal(found[first : first + count], case.y[first : first + count])
        first += count
    if not found.is_cuda:
        assert all(padding_is_intact(tensor) for tensor in (found, case.x, case.scaling))
    if found.is_cuda:  # the interpreter runs programs one by one, always in the same order
        assert torch.equal(run(case, segments), found)


def check_written(case: Case, tile_rows: int) -> None:
    """Written into y the adapters' part is what is added to zeros, and the rest of y keeps every bit."""
    segments = buffers_for(case, tile_rows).upload(case.segments)
    zeros = replace(case, y=padded(torch.zeros_like(case.y), gap=5))
    added, touched = run(zeros, segments), torch.zeros_like(case.y, dtype=torch.bool)
    for segment in case.segments.tiles():
        column = 0
        for index, width in enumerate(case.slices):
            touched[segment.places, column : column + width] = segment.has(index)
            column += width
    assert torch.equal(run(case, segments, adds=False), torch.where(touched, added, case.y))


def check_replays(steps: Sequence[Case], tile_rows: int, num_tiles: int | None = None) -> None:
    """One captured graph gives the bits of an eager run for every step, whatever adapters the step has.

    steps: cases of one pool and the same number of tokens; the graph is captured with the first, for num_tiles.
    """
    first = steps[0]
    buffers = buffers_for(first, tile_rows)
    static = buffers.static(num_tiles)
    x, y = first.x.clone(), first.y.clone()
    buffers.upload(first.segments)

    def launches() -> torch.Tensor:
        h = lora_shrink(x, first.a, static)
        lora_expand(h, first.b, first.scaling, first.slices, static, y)
        return y

    replay = captured(launches, x.device.type)
    for step in [*steps[1:], first]:
        buffers.upload(step.segments)
        x.copy_(step.x)
        y.copy_(step.y)
        replay()
        assert torch.equal(y, run(step, static))
        assert errors(y, expected(step))[0] <= 5e-3
