"""Block sizes that were measured on a card, looked up by operation and place; else the operation's own default.

    tuning/<gpu>.json    {"made": sentence, "plans": [{"op": name, "place": {...}, "plan": {...}}, ...]}

A place is the few numbers that decide, for example `{"tile_rows": 16, "tiles": 8, "slices": 3, "in": 4096}`. The number
of tiles or tokens counts as its next power of two, everything else must agree exactly. A plan names the fields that
differ from the default's. The files are written by benches (`kernels/bench/`), never by hand; there is no search while
serving, which would stall a request for every new shape.
"""

import functools
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final, TypeVar

import torch

from kernels.errors import TuningInvalid
from kernels.triton_jit import next_power_of_2

FOLDER: Final = Path(__file__).with_suffix("")
ROUNDED: Final = frozenset({"tiles", "tokens"})

Plan = TypeVar("Plan", bound=tuple[Any, ...])
Place = Mapping[str, int]
Key = tuple[str, frozenset[tuple[str, int]]]


def device_of(tensor: torch.Tensor) -> str:
    """The card's name as files use it, for example "nvidia-h200"; empty for a CPU."""
    return _card(tensor.device.index or 0) if tensor.is_cuda else ""


def tuned(device: str, op: str, place: Place, default: Plan) -> Plan:
    """The default with what was measured for this place on this card. Raises TuningInvalid for a damaged file."""
    table = _table(device) if device else None
    changes = table.get(key_of(op, place)) if table else None
    if not changes:
        return default
    try:
        plan: Plan = default._replace(**changes)  # type: ignore[attr-defined]  # plans are NamedTuples
    except ValueError as error:
        raise TuningInvalid(f"{device}.json: {op} at {dict(place)}: {error}") from error
    return plan


def read_plans(path: Path) -> dict[Key, dict[str, int]]:
    """What the file says. Raises TuningInvalid."""
    try:
        plans = json.loads(path.read_text(encoding="utf-8"))["plans"]
        return {key_of(plan["op"], plan["place"]): dict(plan["plan"]) for plan in plans}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise TuningInvalid(f"{path} is not a list of plans: {error}") from error


def write_plans(path: Path, made: str, plans: Sequence[tuple[str, Place, dict[str, int]]]) -> None:
    """Writes a file that `read_plans` reads, one plan a line; `made` says how and when."""
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = [
        json.dumps({"op": op, "place": dict(sorted(_rounded(place).items())), "plan": plan})
        for op, place, plan in plans
    ]
    text = '{"made": ' + json.dumps(made) + ', "plans": [\n' + ",\n".join(lines) + "\n]}\n"
    path.write_text(text, encoding="utf-8")


def card_file(name: str) -> str:
    """The file's stem for a card's name: "NVIDIA H100 80GB HBM3" gives "nvidia-h100-80gb-hbm3"."""
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")


@functools.cache
def _card(index: int) -> str:
    return card_file(torch.cuda.get_device_name(index))


@functools.cache
def _table(device: str) -> dict[Key, dict[str, int]]:
    path = FOLDER / f"{device}.json"
    return read_plans(path) if path.exists() else {}


def _rounded(place: Place) -> dict[str, int]:
    return {name: next_power_of_2(value) if name in ROUNDED else value for name, value in place.items()}


def key_of(op: str, place: Place) -> Key:
    """What the table is looked up with."""
    return op, frozenset(_rounded(place).items())
