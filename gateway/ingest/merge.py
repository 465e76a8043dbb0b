"""Base + adapter as one plain Hugging Face folder: `W + scaling * B @ A` in every module that the adapter changes.

The base's files are copied as they are; only the bytes of changed weights are written anew, in the base's own type, so
headers, shards and index stay what they were. Arithmetic is float32 with one rounding to the base's type at the end, as
PEFT's `merge_and_unload` does it. Memory: one block of rows at a time. Nothing here needs torch.
"""

import json
import shutil
import tempfile
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from gateway.ingest.adapter import CONFIG_FILE, WEIGHTS_FILE, AdapterRefused, CheckedAdapter, check_adapter
from gateway.ingest.safetensors_header import BadHeader, Tensor, read_header
from gateway.ingest.tensor_rules import DTYPES, LoraModule, elements, full_name
from storage.geometry import Geometry
from storage.packed import NUMPY_DTYPE

MAX_RANK: Final = 512
MAX_BASE_HEADER_BYTES: Final = 100_000_000
_BLOCK_ELEMENTS: Final = 8 * 1024**2
_SINGLE: Final = "model.safetensors"
_INDEX: Final = "model.safetensors.index.json"
_OTHER_WEIGHTS: Final = (".bin", ".pt", ".pth", ".ckpt", ".h5", ".msgpack", ".onnx", ".gguf")


class MergeFailed(Exception):
    """The two cannot be merged; the text says why."""


def merge_folders(base: Path, adapter: Path, out: Path) -> tuple[str, ...]:
    """Writes `out`, which must not exist, and returns the names of the modules that were changed.

    Raises MergeFailed, AdapterRefused (with every broken rule), OSError; then there is no `out`.
    """
    if out.exists():
        raise MergeFailed(f"{out} is there already; name a folder that is not")
    checked, geometry = _read(base, adapter)
    places = _places(base, checked, geometry)
    scratch = Path(tempfile.mkdtemp(prefix=f".{out.name}-", dir=out.parent))
    try:
        for path in sorted(base.iterdir()):
            if path.is_file() and not path.name.startswith(".") and not path.name.endswith(_OTHER_WEIGHTS):
                shutil.copyfile(path, scratch / path.name)
        lora = np.memmap(adapter / WEIGHTS_FILE, np.uint8, "r")
        for shard, modules in places.items():
            data = np.memmap(scratch / shard, np.uint8, "r+")
            for module, tensor in modules:
                _add(data, tensor, module, lora)
            data.flush()
        scratch.chmod(0o755)
        scratch.rename(out)
    except BaseException:
        shutil.rmtree(scratch, ignore_errors=True)
        raise
    return checked.module_names


def _read(base: Path, adapter: Path) -> tuple[CheckedAdapter, Geometry]:
    try:
        geometry = Geometry.from_folder(base)
    except ValueError as error:
        raise MergeFailed(str(error)) from error
    for name in (CONFIG_FILE, WEIGHTS_FILE):
        if not (adapter / name).is_file():
            raise AdapterRefused([f"{adapter / name} is missing"])
    config = (adapter / CONFIG_FILE).read_bytes()
    return check_adapter(config, adapter / WEIGHTS_FILE, geometry, MAX_RANK), geometry


def _places(base: Path, checked: CheckedAdapter, geometry: Geometry) -> dict[str, list[tuple[LoraModule, Tensor]]]:
    """For each shard: which of its tensors change, and by what. Raises MergeFailed before anything is copied."""
    found = {tensor.name: (shard, tensor) for shard in _shards(base) for tensor in _header(base / shard)}
    places: defaultdict[str, list[tuple[LoraModule, Tensor]]] = defaultdict(list)
    for module in checked.modules:
        name = f"{full_name(module.layer, module.module)}.weight"
        if name not in found:
            raise MergeFailed(f"{base} has no tensor {name}")
        shard, tensor = found[name]
        if tensor.dtype not in DTYPES or tensor.shape != geometry.shape(module.module):
            raise MergeFailed(
                f"{name} of the base is {tensor.dtype}{list(tensor.shape)}; a merge needs {', '.join(DTYPES)} and "
                f"{list(geometry.shape(module.module))}"
            )
        places[shard].append((module, tensor))
    return dict(places)


def _shards(base: Path) -> list[str]:
    if (base / _SINGLE).is_file():
        return [_SINGLE]
    try:
        index: Any = json.loads((base / _INDEX).read_bytes())
        names = sorted(set(index["weight_map"].values()))
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise MergeFailed(f"{base} has neither {_SINGLE} nor a readable {_INDEX}: {error}") from error
    for name in names:
        if not isinstance(name, str) or Path(name).name != name or not (base / name).is_file():
            raise MergeFailed(f"{_INDEX} names {name!r}, which is no file of {base}")
    return names


def _header(path: Path) -> tuple[Tensor, ...]:
    try:
        with path.open("rb") as file:
            return read_header(file, path.stat().st_size, MAX_BASE_HEADER_BYTES)
    except BadHeader as error:
        raise MergeFailed(f"{path}: {error}") from error


def _add(data: npt.NDArray[np.uint8], tensor: Tensor, module: LoraModule, lora: npt.NDArray[np.uint8]) -> None:
    """Adds scaling * B @ A to the tensor's bytes in place, some rows at a time."""
    a = _floats(_matrix(module.a, lora), module.a.dtype)
    b = _floats(_matrix(module.b, lora), module.b.dtype)
    weight = _matrix(tensor, data)
    for rows in _blocks(*tensor.shape):
        summed = _floats(weight[rows], tensor.dtype) + (b[rows] @ a) * np.float32(module.scaling)
        weight[rows] = _rounded(summed, tensor.dtype)


def _blocks(num_rows: int, num_columns: int) -> Iterator[slice]:
    step = max(1, _BLOCK_ELEMENTS // num_columns)
    for start in range(0, num_rows, step):
        yield slice(start, start + step)


def _matrix(tensor: Tensor, data: npt.NDArray[np.uint8]) -> npt.NDArray[Any]:
    """The tensor as a view of the file, bfloat16 as its bits."""
    return elements(tensor, data, NUMPY_DTYPE[DTYPES[tensor.dtype]]).reshape(tensor.shape)


def _floats(values: npt.NDArray[Any], dtype: str) -> npt.NDArray[np.float32]:
    if dtype == "BF16":
        return (values.astype(np.uint32) << 16).view(np.float32)
    return values.astype(np.float32)


def _rounded(values: npt.NDArray[np.float32], dtype: str) -> npt.NDArray[Any]:
    """To the base's type, to nearest, ties to even; the values are finite."""
    if dtype != "BF16":
        return values.astype(NUMPY_DTYPE[DTYPES[dtype]])
    bits = values.view(np.uint32)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)
