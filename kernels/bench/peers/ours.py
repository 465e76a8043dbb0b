"""Our kernels: one pool per set, the segments of a step uploaded once."""

from collections.abc import Sequence

import torch

from kernels.bench.peers.base import Operation
from kernels.bench.sgmv_points import Problem
from kernels.lora_expand import lora_expand
from kernels.lora_shrink import lora_shrink
from kernels.segments import DeviceSegments, SegmentBuffers, SlotRows, build_segments, tile_rows_for


class Ours:
    """tile_rows: 1 or 16 for that form, None for what the runtime would take."""

    def __init__(self, tile_rows: int | None = None) -> None:
        self._tile_rows = tile_rows

    def segments(self, problem: Problem) -> DeviceSegments:
        """As in a graph: captured for the next power of two of tiles, whatever adapters come."""
        rank, rows = problem.point.rank, problem.point.rows
        owned = {slot: SlotRows(slot * rank, rank) for slot in range(len(problem.lengths))}
        segments = build_segments(range(len(owned)), problem.lengths, owned)
        tile_rows = self._tile_rows or tile_rows_for(segments)
        buffers = SegmentBuffers(rows, rows, rank, tile_rows, problem.device)
        return buffers.static(buffers.tile_bucket(buffers.upload(segments).num_tiles))

    def operations(self, problem: Problem) -> Sequence[Operation]:
        """See `Peer`."""
        segments = self.segments(problem)
        scaling = torch.ones((len(problem.lengths), 1), device=problem.device)
        return [self._operation(problem, index, segments, scaling) for index in range(problem.sets)]

    def _operation(self, problem: Problem, index: int, segments: DeviceSegments, scaling: torch.Tensor) -> Operation:
        x, y = problem.x[index], problem.y[index]
        a, b = problem.a[index].view(1, -1, x.shape[1]), problem.b[index].view(-1, y.shape[1])

        def operation() -> None:
            h = lora_shrink(x, a, segments)
            lora_expand(h, b, scaling, (y.shape[1],), segments, y)

        return operation
