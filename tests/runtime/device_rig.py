"""The device's path on this CPU: kernels interpreted, and recordings in the place of graphs."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

from kernels.triton_jit import interpreting
from runtime.device_runner import DeviceRunner, DeviceSizes
from tests.runtime.recorded import record

SIZES = DeviceSizes(kv_bytes=1 << 20, block_tokens=16, adapter_rows=128, max_slots=8, max_rows=8)


@contextmanager
def interpreted() -> Iterator[None]:
    """Kernels run on CPU tensors, with fewer programs than a GPU has room for: they run one after the other."""
    with interpreting(), patch("kernels.lora_shrink._PROGRAMS", 24):
        yield


def device_runner(folder: Path, sizes: DeviceSizes = SIZES, **options: Any) -> DeviceRunner:
    """Call it, and use it, within `interpreted()`."""
    return DeviceRunner.load(folder, sizes, device="cpu", dtype="float32", **{"capture": record, **options})
