"""Rooms for experiments around the shrink, each beside what we do, for `steps.py` to time on a card.

Ours: the base product of q, k and v, then one launch that shrinks for all adapters of the step. Beside it:

    appended       the rows of A stand under the base weight, so one product of cuBLAS does both, for every resident row
    side stream    the shrink runs while the base product does
    dense          a product of cuBLAS with the rows of A of all adapters instead of our launch

What is left out: `appended` and `dense` give every token all adapters' rows, of which an expand would have to take the
token's own; nobody reads their results here. Decision 0012 says what waits for these figures.
"""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, Final

import torch

from kernels.bench.clock import Operation
from kernels.bench.step_sizes import Sizes, Work, sets_of
from kernels.lora_shrink import lora_shrink
from kernels.segments import DeviceSegments, SegmentBuffers, SlotRows, build_segments, tile_rows_for

RANK: Final = 16
MOST_ADAPTERS: Final = 8
_SLICES: Final = 3
linear: Final[Callable[..., torch.Tensor]] = torch.nn.functional.linear


def shrinks(sizes: Sizes, device: torch.device, dtype: torch.dtype) -> Iterator[Work]:
    """Each variant beside ours, at every number of rows."""
    width = sizes.hidden
    for rows in sizes.rows:
        adapters = min(rows, MOST_ADAPTERS)
        segments = _segments(rows, adapters, device)
        weights = _SLICES * width * width * dtype.itemsize
        moved = weights + dtype.itemsize * (rows * (1 + _SLICES) * width + _SLICES * adapters * RANK * width)
        count = sets_of(weights, sizes.rotated_bytes)

        def random(*shape: int) -> torch.Tensor:
            return torch.randn(shape, device=device, dtype=dtype).mul_(shape[-1] ** -0.5)

        data = [(random(rows, width), random(_SLICES * (width + adapters * RANK), width)) for _ in range(count)]
        ours = [partial(_ours, x, w[: _SLICES * width], _a_of(w, width), segments) for x, w in data]
        for name, variant in VARIANTS.items():
            theirs: list[Operation] = [
                partial(variant, x, w, w[: _SLICES * width], _a_of(w, width), segments) for x, w in data
            ]
            yield Work(
                f"base product and shrink, {rows} rows, {adapters} adapters r{RANK}: {name}",
                moved,
                ours,
                theirs,
                name,
                results=(ours[0], partial(_first, theirs[0], _SLICES * width)),
            )


def _a_of(weight: torch.Tensor, width: int) -> torch.Tensor:
    """[slices, rows, in]: what stands under the base weight."""
    return weight[_SLICES * width :].view(_SLICES, -1, width)


def _segments(rows: int, adapters: int, device: torch.device) -> DeviceSegments:
    owned = {slot: SlotRows(slot * RANK, RANK) for slot in range(adapters)}
    shares = [rows // adapters + (slot < rows % adapters) for slot in range(adapters)]
    segments = build_segments(range(adapters), shares, owned)
    buffers = SegmentBuffers(rows, rows, RANK, tile_rows_for(segments), device)
    return buffers.static(buffers.tile_bucket(buffers.upload(segments).num_tiles))


def _ours(x: torch.Tensor, base: torch.Tensor, a: torch.Tensor, segments: DeviceSegments) -> torch.Tensor:
    y = linear(x, base)
    lora_shrink(x, a, segments)
    return y


def _appended(x: torch.Tensor, whole: torch.Tensor, *_: Any) -> torch.Tensor:
    return linear(x, whole)


def _beside(
    x: torch.Tensor, whole: torch.Tensor, base: torch.Tensor, a: torch.Tensor, segments: DeviceSegments
) -> torch.Tensor:
    if not x.is_cuda:
        return _ours(x, base, a, segments)
    here = torch.cuda.current_stream()
    there = _side_stream(x.device)
    there.wait_stream(here)
    with torch.cuda.stream(there):
        lora_shrink(x, a, segments)
    y = linear(x, base)
    here.wait_stream(there)
    return y


def _dense(x: torch.Tensor, whole: torch.Tensor, base: torch.Tensor, a: torch.Tensor, *_: Any) -> torch.Tensor:
    y = linear(x, base)
    linear(x, a.view(-1, x.shape[1]))
    return y


def _first(operation: Callable[[], Any], width: int) -> torch.Tensor:
    """What is the base's of the result."""
    found: torch.Tensor = operation()
    return found[:, :width]


_streams: Final = dict[torch.device, Any]()


def _side_stream(device: torch.device) -> Any:
    if device not in _streams:
        _streams[device] = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
    return _streams[device]


VARIANTS: Final[dict[str, Callable[..., torch.Tensor]]] = {
    "A appended to the base weight": _appended,
    "shrink on a side stream": _beside,
    "dense product with all adapters' A": _dense,
}
