"""The device's path on this CPU: kernels interpreted, and recordings in the place of graphs."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

from kernels.lora_shrink import ShrinkPlan, default_plan
from kernels.segments import DeviceSegments
from kernels.triton_jit import interpreting
from runtime.device_runner import DeviceRunner, DeviceSizes
from tests.kernels.interpreter_language import language_kept
from tests.runtime.recorded import record

SIZES = DeviceSizes(kv_bytes=1 << 20, block_tokens=16, adapter_rows=128, max_slots=8, max_rows=8)


@contextmanager
def interpreted() -> Iterator[None]:
    """Kernels run on CPU tensors, with fewer programs than a GPU has room for: they run one after the other."""
    with (
        interpreting(),
        language_kept(),
        patch("kernels.lora_shrink._PROGRAMS", 24),
        patch("kernels.lora_shrink._WORKERS", 5),
        patch("kernels.lora_shrink.default_plan", _plan),
    ):
        yield


def _plan(segments: DeviceSegments, slices: int) -> ShrinkPlan:
    """Smaller blocks, and fewer of them, for the small widths here."""
    plan = default_plan(segments, slices)
    return plan._replace(in_block=32, planes=min(plan.planes, 2), rank_block=max(4, plan.rank_block))


def device_runner(folder: Path, sizes: DeviceSizes = SIZES, **options: Any) -> DeviceRunner:
    """Call it, and use it, within `interpreted()`."""
    return DeviceRunner.load(folder, sizes, device="cpu", dtype="float32", **{"capture": record, **options})
