"""Which files hold a model's weights, and how many numbers they hold: read from names and headers alone. No torch.

`model.safetensors`, or the shards that `model.safetensors.index.json` names. A safetensors file begins with the length
of its header (8 bytes, little-endian) and the header, JSON: {tensor name: {dtype, shape, data_offsets}}.
"""

import json
import math
from pathlib import Path
from typing import Any, Final, NamedTuple

from runtime.errors import ModelInvalid

SINGLE_FILE: Final = "model.safetensors"
INDEX_FILE: Final = "model.safetensors.index.json"
_MAX_HEADER_BYTES: Final = 100 * 1024**2  # the library's own limit


def shard_names(folder: Path) -> tuple[list[str], set[str]]:
    """File names, and the tensor names that the index promises (none for a single file). Raises ModelInvalid."""
    if (folder / SINGLE_FILE).is_file():
        return [SINGLE_FILE], set()
    try:
        index = json.loads((folder / INDEX_FILE).read_bytes())
    except FileNotFoundError as error:
        raise ModelInvalid(f"{folder} has neither {SINGLE_FILE} nor {INDEX_FILE}") from error
    except (OSError, ValueError) as error:
        raise ModelInvalid(f"{folder / INDEX_FILE} cannot be read: {error}") from error
    weights = index.get("weight_map") if isinstance(index, dict) else None
    if not isinstance(weights, dict) or not weights or not all(isinstance(name, str) for name in weights.values()):
        raise ModelInvalid(f"{folder / INDEX_FILE} has no weight_map of file names")
    shards = sorted(set(weights.values()))
    for shard in shards:
        if Path(shard).name != shard:
            raise ModelInvalid(f"{folder / INDEX_FILE}: {shard!r} is not a plain file name")
    return shards, set(weights)


class Stored(NamedTuple):
    """A tensor as a file has it; dtype as safetensors names it ("BF16")."""

    shape: tuple[int, ...]
    dtype: str

    @property
    def num_elements(self) -> int:
        """How many numbers it has."""
        return math.prod(self.shape)


def stored_tensors(folder: Path) -> dict[str, Stored]:
    """Every tensor of the folder by name. Raises ModelInvalid."""
    return {
        name: stored for shard in shard_names(folder)[0] for name, stored in _stored_in(folder / shard).items()
    }  # fmt: skip


def _stored_in(path: Path) -> dict[str, Stored]:
    try:
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            if length > _MAX_HEADER_BYTES:
                raise ModelInvalid(f"{path} is not a readable safetensors file: its header would have {length} bytes")
            header: Any = json.loads(file.read(length))
        return {
            name: Stored(tuple(int(size) for size in entry["shape"]), str(entry["dtype"]))
            for name, entry in header.items()
            if name != "__metadata__"
        }
    except (OSError, ValueError, AttributeError, KeyError, TypeError) as error:
        raise ModelInvalid(f"{path} is not a readable safetensors file: {error}") from error
