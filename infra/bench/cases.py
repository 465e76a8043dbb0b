"""Every case by name, which ones `--quick` takes, and which ones the larger model leaves out for time."""

from typing import Final

from infra.bench.batch_cases import batch8
from infra.bench.case import NAMES, Case, Effort
from infra.bench.serving_cases import overhead, served
from infra.bench.shapes import HALF, SMALL, SMALL32, Shape
from infra.bench.single_cases import floor, same, single, ttft
from infra.bench.stage import SHORT

CASES: Final[dict[str, Case]] = {
    "single.same": same,
    "batch8.base": batch8("base"),
    "batch8.mixed": batch8("mixed"),
    "batch8.identical": batch8("identical"),
    "batch8.zipf": batch8("zipf"),
    "batch8.ranks": batch8("ranks"),
    "single.base": single(None),
    "single.adapter": single(NAMES[0]),
    "single.floor": floor,
    "ttft.32": ttft(32),
    "ttft.512": ttft(512),
    "ttft.1024": ttft(1024),
    "served.1": served(1),
    "served.8": served(8),
    "served.32": served(32),
    "overhead.32": overhead,
}
_SMALL: Final = Effort(rounds=5, tokens=64)
FULL: Final = {SMALL: _SMALL, SMALL32: _SMALL, HALF: Effort(rounds=3, tokens=24)}
QUICK: Final = {SMALL: Effort(rounds=3, tokens=32)}
QUICK_CASES: Final = ("batch8.mixed", "single.base", "single.adapter", "single.floor", "served.8", "overhead.32")
QUICK_DTYPES: Final = ("bfloat16",)
# What is run of a shape whose file is in fp32, in fp32 only: there nothing is narrower than what computes.
WIDE: Final = (("float32", "batch8.mixed"), ("float32", "single.base"))
LEFT_OUT: Final = {HALF: ("batch8.identical", "batch8.zipf", "batch8.ranks")}


def plan(quick: bool, only: str) -> tuple[list[tuple[Shape, str, str]], list[str]]:
    """(shape, dtype, case) of what runs, in order, and the names of what is left out for time.

    `only` is a part of the name; naming a model in it runs what would be left out.
    """
    chosen, left_out = [], []
    for shape in QUICK if quick else FULL:
        for dtype in QUICK_DTYPES if quick else SHORT:
            for case in QUICK_CASES if quick else CASES:
                name = f"{shape.name}.{SHORT[dtype]}.{case}"
                if only not in name or (shape.stored == "float32" and (dtype, case) not in WIDE):
                    continue
                if case in LEFT_OUT.get(shape, ()) and shape.name not in only:
                    left_out.append(name)
                else:
                    chosen.append((shape, dtype, case))
    return chosen, left_out
