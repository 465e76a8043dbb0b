"""What an upload would be told about a PEFT folder, without a server: for `lorikeet adapters inspect`."""

import tempfile
from pathlib import Path

import msgspec

from gateway.ingest.adapter import (
    ADAPTER_FILES,
    CONFIG_FILE,
    WEIGHTS_FILE,
    AdapterRefused,
    check_adapter,
    pack,
)
from gateway.ingest.config_rules import MAX_CONFIG_BYTES
from gateway.settings import Adapters
from storage.geometry import Geometry


class Inspection(msgspec.Struct, frozen=True):
    """`ok`, or every reason why not. The figures are those of the packed adapter and None when it is not ok."""

    ok: bool
    reasons: tuple[str, ...] = ()
    rank: int | None = None
    modules: tuple[str, ...] = ()
    dtype: str | None = None
    size_bytes: int | None = None
    digest: str | None = None


def inspect_folder(folder: Path, geometry: Geometry, limits: Adapters) -> Inspection:
    """Checks `adapter_config.json` and `adapter_model.safetensors` in `folder` as an upload would be."""
    config, weights = folder / CONFIG_FILE, folder / WEIGHTS_FILE
    reasons = [f"{folder / name} is missing" for name in ADAPTER_FILES if not (folder / name).is_file()]
    if reasons:
        return Inspection(ok=False, reasons=tuple(reasons))
    try:
        if weights.stat().st_size > limits.max_bytes:
            reasons.append(f"{WEIGHTS_FILE} has {weights.stat().st_size} bytes; the limit is {limits.max_bytes}")
        with config.open("rb") as file:
            data = file.read(MAX_CONFIG_BYTES + 1)
        adapter = check_adapter(data, weights, geometry, limits.max_rank)
        if reasons:
            return Inspection(ok=False, reasons=tuple(reasons))
        with tempfile.TemporaryDirectory() as scratch:
            packed = pack(adapter, weights, geometry, Path(scratch) / "packed")
    except AdapterRefused as error:
        return Inspection(ok=False, reasons=(*reasons, *error.reasons))
    except OSError as error:
        return Inspection(ok=False, reasons=(f"{error.filename or folder}: {error.strerror}",))
    return Inspection(
        ok=True,
        rank=packed.rank,
        modules=packed.modules,
        dtype=packed.dtype,
        size_bytes=packed.size_bytes,
        digest=packed.digest,
    )
