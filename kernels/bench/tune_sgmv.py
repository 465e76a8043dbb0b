"""Looks for the block sizes of shrink and expand on this card: `python -m kernels.bench.tune_sgmv`.

For each projection group of a model (Llama-2-7B's), tile size and number of tiles, the pair of launches is timed with
the default plan, then with one field changed at a time; what is faster by more than the noise is kept. A plan is
written to `kernels/tuning/<card>.json` as soon as it is known, so that a search that is cut short leaves what it found,
and the next one goes on where it ended.
"""

import argparse
import functools
import itertools
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Final, NamedTuple, TypeVar

import torch

from kernels.bench.clock import Timed, in_turns
from kernels.lora_expand import ExpandPlan, expand_place, expand_plan, lora_expand
from kernels.lora_shrink import ShrinkPlan, lora_shrink, shrink_place, shrink_plan
from kernels.segments import TILE_ROWS, DeviceSegments, SegmentBuffers, SlotRows, build_segments
from kernels.triton_jit import interpreting
from kernels.tuning import FOLDER, Key, Place, device_of, key_of, read_plans, write_plans

NOISE: Final = 0.98
RANK: Final = 16
MOST_RANK: Final = 64
GROUPS: Final[dict[str, tuple[int, tuple[int, ...]]]] = {
    "qkv": (4096, (4096, 4096, 4096)),
    "o": (4096, (4096,)),
    "gate_up": (4096, (11008, 11008)),
    "down": (11008, (4096,)),
    "up": (4096, (11008,)),
}
TILES: Final = (1, 2, 4, 8, 16, 32, 64)
Values = Mapping[str, Sequence[int]]
SEARCH: Final[dict[int, tuple[Values, Values]]] = {
    1: (
        {"rank_block": (1, 2, 4, 8), "in_block": (512, 1024, 2048), "num_warps": (2, 4, 8), "workers": (4, 16, 64)},
        {"column_block": (64, 128, 256, 512, 1024), "rank_block": (4, 8, 16, 32), "num_warps": (2, 4, 8)},
    ),
    TILE_ROWS: (
        {
            "planes": (1, 2, 4, 8, 16),
            "in_block": (64, 128, 256),
            "num_warps": (2, 4, 8),
            "num_stages": (2, 3, 4),
            "rank_block": (16, 32),
            "workers": (4, 16, 64),
        },
        {"column_block": (64, 128, 256), "rank_block": (16, 32, 64), "num_warps": (2, 4, 8)},
    ),
}
Plan = TypeVar("Plan", ShrinkPlan, ExpandPlan)


class Pair(NamedTuple):
    """A group's data, several sets of it, and the segments of a step with so many tiles."""

    x: torch.Tensor
    a: torch.Tensor
    b: torch.Tensor
    y: torch.Tensor
    scaling: torch.Tensor
    slices: tuple[int, ...]
    segments: DeviceSegments

    def timed(self, repeats: int, shrink: ShrinkPlan, expand: ExpandPlan) -> float:
        """Microseconds of the two launches; infinity for plans that the compiler or the card refuses."""
        operations = [self._operation(index, shrink, expand) for index in range(len(self.x))]
        try:
            return in_turns([Timed(operations, self.x.device)], repeats)[0]
        except Exception:
            return float("inf")

    def _operation(self, index: int, shrink: ShrinkPlan, expand: ExpandPlan) -> Callable[[], None]:
        def operation() -> None:
            h = lora_shrink(self.x[index], self.a[index], self.segments, plan=shrink)
            lora_expand(h, self.b[index], self.scaling, self.slices, self.segments, self.y[index], plan=expand)

        return operation


def make_pair(
    in_features: int,
    slices: tuple[int, ...],
    tile_rows: int,
    tiles: int,
    device: torch.device,
    dtype: torch.dtype,
    sets: int,
) -> Pair:
    """Every tile has an adapter of its own: of one row, or of four in a tile of sixteen."""
    count = 1 if tile_rows == 1 else 4
    rows = {slot: SlotRows(slot * RANK, RANK) for slot in range(tiles)}
    segments = build_segments(range(tiles), [count] * tiles, rows)
    buffers = SegmentBuffers(segments.num_tokens, tiles, MOST_RANK, tile_rows, device)
    needed = tiles * RANK * (len(slices) * in_features + sum(slices)) * dtype.itemsize
    sets = min(sets, max(4, -(-160 * 1024**2 // needed)))

    def normal(*shape: int) -> torch.Tensor:
        return torch.empty((sets, *shape), dtype=dtype, device=device).normal_()

    return Pair(
        normal(segments.num_tokens, in_features),
        normal(len(slices), tiles * RANK, in_features),
        normal(tiles * RANK, sum(slices)),
        normal(segments.num_tokens, sum(slices)),
        torch.ones((tiles, len(slices)), device=device),
        slices,
        buffers.upload(segments),
    )


def better(plan: Plan, values: Values, time_of: Callable[[Plan], float], end: float) -> Plan:
    """The plan after one pass over its fields; stops when the time is over."""
    best = time_of(plan)
    for field, candidates in values.items():
        for candidate in candidates:
            if time.monotonic() > end or candidate == getattr(plan, field):
                continue
            trial = plan._replace(**{field: candidate})
            taken = time_of(trial)
            if taken < NOISE * best:
                best, plan = taken, trial
    return plan


def search(
    places: Sequence[tuple[str, int, int]], arguments: argparse.Namespace, known: set[Key]
) -> Iterator[tuple[str, Place, dict[str, int]]]:
    """(operation, place, plan) as they are found; places that are known are left out."""
    device = torch.device(arguments.device)
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    end = time.monotonic() + arguments.seconds
    for name, tile_rows, tiles in places:
        in_features, slices = arguments.groups[name]
        pair = make_pair(in_features, slices, tile_rows, tiles, device, dtype, arguments.sets)
        shrink, expand = shrink_plan(pair.segments, len(slices), in_features), expand_plan(pair.segments, slices)
        at_shrink = shrink_place(pair.segments, len(slices), in_features)
        at_expand = expand_place(pair.segments, slices)
        shrink_values, expand_values = SEARCH[tile_rows]
        if device.type == "cuda" and torch.cuda.get_device_capability() >= (9, 0):
            shrink, expand = _early_or_not(pair, shrink, expand, arguments.repeats)
        if key_of("lora_shrink", at_shrink) not in known and time.monotonic() < end:
            time_of_shrink = functools.partial(pair.timed, arguments.repeats, expand=expand)
            shrink = better(shrink, shrink_values, time_of_shrink, end)
            yield "lora_shrink", at_shrink, shrink._asdict()
        if key_of("lora_expand", at_expand) not in known and time.monotonic() < end:
            time_of_expand = functools.partial(pair.timed, arguments.repeats, shrink)
            expand = better(expand, expand_values, time_of_expand, end)
            yield "lora_expand", at_expand, expand._asdict()


def _early_or_not(pair: Pair, shrink: ShrinkPlan, expand: ExpandPlan, repeats: int) -> tuple[ShrinkPlan, ExpandPlan]:
    """The two fields that mean something together only."""
    plans = [(shrink._replace(early=early), expand._replace(early=early)) for early in (0, 1)]
    late, early = (pair.timed(repeats, *plan) for plan in plans)
    return plans[early < NOISE * late]


def main(argv: Sequence[str] | None = None, groups: Mapping[str, tuple[int, tuple[int, ...]]] = GROUPS) -> None:
    """Writes the file and prints what it found."""
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--seconds", type=float, default=240.0)
    options.add_argument("--repeats", type=int, default=5)
    options.add_argument("--sets", type=int, default=64)
    options.add_argument("--tiles", type=int, nargs="*", default=TILES)
    options.add_argument("--device", default="cuda")
    options.add_argument("--out", type=Path)
    arguments = options.parse_args(argv)
    arguments.groups = groups
    card = device_of(torch.empty(0, device=arguments.device)) or "none"
    path = arguments.out or FOLDER / f"{card}.json"
    stored = read_plans(path) if path.exists() else {}
    plans: list[tuple[str, Place, dict[str, int]]] = [(op, dict(place), plan) for (op, place), plan in stored.items()]
    known = set(stored)
    made = f"kernels/bench/tune_sgmv.py on {card}, torch {torch.__version__}"
    inside: AbstractContextManager[None] = nullcontext() if arguments.device == "cuda" else interpreting()
    places = list(itertools.product(groups, SEARCH, arguments.tiles))
    with inside, torch.inference_mode():
        for op, place, plan in search(places, arguments, known):
            plans.append((op, place, plan))
            known.add(key_of(op, place))
            write_plans(path, made, plans)
            print(op, dict(place), plan, flush=True)


if __name__ == "__main__":
    main()
