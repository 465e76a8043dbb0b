"""From two uploaded files to one packed adapter: all checks in order, then the packed file and its digest.

Shape: `check_adapter` maps the weights file (private to us, so nobody changes it underneath), collects every broken
rule and returns a `CheckedAdapter` or raises `AdapterRefused`; `pack` writes it. Both read and compute for long:
callers run them in a thread.
"""

import hashlib
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt

from gateway.ingest.config_rules import AdapterConfig, check_config
from gateway.ingest.safetensors_header import BadHeader, Tensor, read_header, shortened
from gateway.ingest.tensor_rules import DTYPES, LoraModule, elements, not_finite, plan_modules
from storage.geometry import MODULES, Geometry
from storage.packed import NUMPY_DTYPE, AdapterDtype, LoraMatrices, write_packed

CONFIG_FILE: Final = "adapter_config.json"
WEIGHTS_FILE: Final = "adapter_model.safetensors"
ADAPTER_FILES: Final = (CONFIG_FILE, WEIGHTS_FILE)


class AdapterRefused(Exception):
    """The files are not an adapter that this base can serve; `reasons` are sentences for their owner."""

    def __init__(self, reasons: list[str]) -> None:
        self.reasons = tuple(shortened(reasons))
        super().__init__("; ".join(self.reasons))


class CheckedAdapter(NamedTuple):
    """An adapter that fits its base. `dtype` is the one the packed file will have."""

    modules: tuple[LoraModule, ...]
    dtype: AdapterDtype
    rank: int

    @property
    def module_names(self) -> tuple[str, ...]:
        """Which kinds of modules it changes, in the base's order."""
        touched = {module.module for module in self.modules}
        return tuple(name for name in MODULES if name in touched)


class PackedFile(NamedTuple):
    """The packed file that was written. `digest` is the SHA-256 of its bytes in hex."""

    digest: str
    size_bytes: int
    rank: int
    modules: tuple[str, ...]
    dtype: AdapterDtype


def check_config_file(data: bytes, geometry: Geometry, max_rank: int) -> AdapterConfig:
    """The config on its own. Raises AdapterRefused."""
    config, reasons = check_config(data, geometry, max_rank)
    if config is None or reasons:
        raise AdapterRefused(reasons)
    return config


def check_weights_file(path: Path) -> tuple[Tensor, ...]:
    """The weights' header on its own. Raises AdapterRefused, OSError."""
    try:
        with path.open("rb") as file:
            return read_header(file, path.stat().st_size)
    except BadHeader as error:
        raise AdapterRefused([f"{WEIGHTS_FILE}: {reason}" for reason in error.reasons]) from error


def check_adapter(config_data: bytes, weights: Path, geometry: Geometry, max_rank: int) -> CheckedAdapter:
    """Both files together, values included. Raises AdapterRefused with every broken rule, OSError."""
    config, reasons = check_config(config_data, geometry, max_rank)
    tensors: tuple[Tensor, ...] = ()
    try:
        tensors = check_weights_file(weights)
    except AdapterRefused as error:
        raise AdapterRefused([*reasons, *error.reasons]) from error
    if config is None:
        raise AdapterRefused(reasons)
    modules, broken = plan_modules(tensors, config, geometry)
    reasons += [*broken, *not_finite(modules, _mapped(weights))]
    if reasons:
        raise AdapterRefused(reasons)
    dtypes = {DTYPES[tensor.dtype] for module in modules for tensor in (module.a, module.b)}
    # A mix is widened to the one type that holds both halves exactly.
    dtype: AdapterDtype = dtypes.pop() if len(dtypes) == 1 else "float32"
    return CheckedAdapter(tuple(modules), dtype, max(module.rank for module in modules))


def pack(adapter: CheckedAdapter, weights: Path, geometry: Geometry, out: Path) -> PackedFile:
    """Writes the packed file to `out`, a new file. Raises OSError."""
    data = _mapped(weights)
    matrices = (
        LoraMatrices(
            module.layer,
            module.module,
            module.scaling,
            _values(module.a, data, adapter.dtype),
            _values(module.b, data, adapter.dtype),
        )
        for module in adapter.modules
    )
    with out.open("xb") as file:
        write_packed(file, geometry, adapter.dtype, matrices)
        size = file.tell()
    with out.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return PackedFile(digest, size, adapter.rank, adapter.module_names, adapter.dtype)


def _values(tensor: Tensor, data: npt.NDArray[np.uint8], dtype: AdapterDtype) -> npt.NDArray[Any]:
    own = DTYPES[tensor.dtype]
    values = elements(tensor, data, NUMPY_DTYPE[own])
    if own != dtype and own == "bfloat16":
        values = (values.astype(np.uint32) << 16).view(np.float32)
    elif own != dtype:
        values = values.astype(np.float32)
    return values.reshape(tensor.shape)


def _mapped(path: Path) -> npt.NDArray[np.uint8]:
    return np.memmap(path, np.uint8, "r")
