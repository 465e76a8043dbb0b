"""Time to the first token through the engine, alone on the device: from `submit` to the step that brings the token."""

import statistics
import time

from infra.bench.gpu.child import Line
from infra.bench.gpu.serving import Serving, in_host_memory, packed_bytes
from infra.bench.gpu.settings import Setting
from runtime.device_runner import DeviceRunner

REPEATS = 5


class FirstTokens:
    """An engine over a runner that nobody else uses any more."""

    def __init__(self, runner: DeviceRunner, setting: Setting) -> None:
        rank = min(setting.ranks) if len(setting.ranks) == 1 else 16
        files = [in_host_memory(packed_bytes(setting, rank, seed=1), runner.device)]
        self._serving = Serving(runner, setting, files, running=4, rows=rank)
        self._repeats = REPEATS if runner.device.type == "cuda" else 1
        self._number = 0

    def measured(self, prompt: int, adapter: bool) -> Line:
        """Milliseconds; the first is not counted: kernels are compiled, the adapter is brought."""
        times = [self._once(prompt, adapter) for _ in range(self._repeats + 1)][1:]
        return {"ms": 1e3 * statistics.median(times)}

    def _once(self, prompt: int, adapter: bool) -> float:
        self._number += 1
        began, first = time.perf_counter(), 0.0
        self._serving.submit(self._number, prompt, 2, 0 if adapter else None)
        while True:
            for item in self._serving.step().outputs:
                first = first or time.perf_counter() - began
                if item.output.finish_reason is not None:
                    return first
