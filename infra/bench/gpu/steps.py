"""The steps of a visit: what each runs, which file it fills, and its share of the time.

    tests     tier 4, a process for each file of tests/gpu                          gpu-tests.json
    kernels   SGMV beside its peers; attention, element-wise work and sampling      gpu-kernels.json
    decode    Llama-2-7B's shapes: step times, time to the first token              gpu-decode.json
    loads     adapters arriving while requests run                                  gpu-loads.json, gpu-loads.png
    adapters  1 to 1,000 adapters, Zipf                                             gpu-adapters.json

A step is one or more commands, each a process group of its own. Each gets a share of the step's time, told to it by
`--seconds` or `--within`, and is ended at its limit: what it wrote by then stays.
"""

import sys
from pathlib import Path
from typing import Final, NamedTuple

# Starting, loading torch, opening the device and ending whoever is late (a process that holds most of the card takes
# seconds to go) come on top of the seconds that a command may measure for.
START_S: Final = 18.0
# When a process that measures kernels is ended, beyond its share.
GRACE_S: Final = 10.0
# From so many seconds on there is time for the whole of Punica's grid.
FULL_GRID_S: Final = 300.0


class Command(NamedTuple):
    """words: what follows "python -m". limit_s: when it is ended."""

    words: tuple[str, ...]
    limit_s: float


class Step(NamedTuple):
    """weight: its share of the time, beside the others'."""

    name: str
    weight: float


STEPS: Final = (Step("tests", 22), Step("kernels", 32), Step("decode", 28), Step("loads", 12), Step("adapters", 10))


def file_of(step: str, folder: Path) -> Path:
    """The rows of a step."""
    return folder / f"gpu-{step}.json"


def commands(step: str, seconds: float, folder: Path, device: str) -> list[Command]:
    """Within so many seconds. device: "cuda", or "cpu" for toy sizes in Triton's interpreter."""
    out, toy = str(file_of(step, folder)), device != "cuda"
    if step == "kernels":
        return _kernels(seconds, out, toy)
    module = "infra.bench.gpu.tier4" if step == "tests" else f"infra.bench.gpu.{step}"
    given = max(1.0, seconds - START_S)
    return [Command((module, "--out", out, "--seconds", f"{given:.0f}", "--device", device), seconds)]


def _kernels(seconds: float, out: str, toy: bool) -> list[Command]:
    """SGMV asks eight peers, each in a process of its own, then five families of other kernels."""
    points = "tiny" if toy else "full" if seconds >= FULL_GRID_S else "quick"
    both = ("--out", out, "--points", points, "--grace", f"{GRACE_S:.0f}")
    toys = ("--device", "cpu", "--repeats", "1") if toy else ()
    peers = ("--sets", "2", "--peers", "torch grouped_mm,cuBLAS all slots") if toy else ()
    families = ("--families", "elementwise") if toy else ()
    return [
        Command(
            ("kernels.bench.sgmv", *both, "--within", f"{0.6 * seconds - GRACE_S:.0f}", *toys, *peers), 0.6 * seconds
        ),
        Command(
            ("kernels.bench.steps", *both, "--within", f"{0.4 * seconds - GRACE_S:.0f}", *toys, *families),
            0.4 * seconds,
        ),
    ]


def line_of(command: Command) -> list[str]:
    """As a process is started."""
    return [sys.executable, "-m", *command.words]
