"""What the SGMV benchmark asks: Punica's grid, the data of a point, its bytes, and what is right.

A point is one module at one step: y += x A^T B for every row, by its adapter. The grid: 4096 <-> 11008, rank 8 to 64,
1 to 64 rows, and four ways in which rows share adapters. The data of a point are several sets of the same shapes, as
many as it takes to overflow the L2 cache, and an operation takes one set: nobody finds weights in the cache that a
model's other layers would have thrown out.
"""

import math
import random
from typing import Final, NamedTuple

import torch

KINDS: Final = ("identical", "uniform", "zipf", "distinct")
_ROTATED_BYTES: Final = 160 * 1024**2
_MOST_SETS: Final = 512


class Point(NamedTuple):
    """One place of the grid."""

    in_features: int
    out_features: int
    rank: int
    rows: int
    kind: str

    def __str__(self) -> str:
        return f"sgmv {self.in_features}->{self.out_features} r{self.rank} b{self.rows} {self.kind}"


def grid(name: str) -> list[Point]:
    """The points of "full", "quick" (a tenth) or "tiny" (for tests), in an order that has something of all first."""
    if name == "tiny":
        return [Point(48, 32, 8, 3, "uniform"), Point(32, 48, 16, 5, "identical")]
    points = [
        Point(*shape, rank, rows, kind)
        for shape in ((4096, 11008), (11008, 4096))
        for rank in (8, 16, 32, 64)
        for rows in (1, 2, 4, 8, 16, 32, 64)
        for kind in (KINDS if rows > 1 else KINDS[:1])
    ]
    random.Random(1).shuffle(points)
    return points if name == "full" else points[: len(points) // 10]


def lengths(kind: str, rows: int) -> list[int]:
    """Rows of each adapter; zipf is geometric with 1.5, as Punica's."""
    if kind == "identical":
        return [rows]
    if kind == "distinct":
        return [1] * rows
    if kind == "uniform":
        count = math.ceil(math.sqrt(rows))
        return [rows // count + (index < rows % count) for index in range(count)]
    counts, left = list[int](), rows
    while left:
        counts.append(max(1, left - int(left / 1.5)))
        left -= counts[-1]
    return counts


def point_bytes(point: Point, itemsize: int = 2) -> int:
    """What must move: each adapter once, x once, y read and written, h (fp32) written and read."""
    weights = len(lengths(point.kind, point.rows)) * point.rank * (point.in_features + point.out_features) * itemsize
    activations = point.rows * (point.in_features + 2 * point.out_features) * itemsize
    return weights + activations + point.rows * point.rank * 8


class Problem:
    """The data of a point. Random numbers, because zeros make some cards faster.

    x [sets, rows, in], a [sets, adapters, rank, in], b [sets, adapters, rank, out], y [sets, rows, out]; slots: the
    adapter of each row, rows of one adapter side by side.
    """

    def __init__(self, point: Point, device: torch.device, dtype: torch.dtype, most_sets: int = _MOST_SETS) -> None:
        self.point, self.device, self.dtype = point, device, dtype
        self.lengths = lengths(point.kind, point.rows)
        self.slots = [slot for slot, count in enumerate(self.lengths) for _ in range(count)]
        self.sets = min(most_sets, max(4, -(-_ROTATED_BYTES // point_bytes(point, dtype.itemsize))))
        generator = torch.Generator(device).manual_seed(point.rank + point.rows)

        def normal(*shape: int, scale: float = 1.0) -> torch.Tensor:
            out = torch.empty((self.sets, *shape), dtype=dtype, device=device)
            return out.normal_(0, scale, generator=generator)

        adapters = len(self.lengths)
        self.x = normal(point.rows, point.in_features)
        self.a = normal(adapters, point.rank, point.in_features, scale=point.in_features**-0.5)
        self.b = normal(adapters, point.rank, point.out_features, scale=point.rank**-0.5)
        self.y = normal(point.rows, point.out_features)

    def expected(self, index: int) -> torch.Tensor:
        """y of one set after the operation, in float64."""
        y, first = self.y[index].double(), 0
        for slot, count in enumerate(self.lengths):
            rows = slice(first, first + count)
            h = self.x[index, rows].double() @ self.a[index, slot].double().T
            y[rows] += h @ self.b[index, slot].double()
            first += count
        return y
