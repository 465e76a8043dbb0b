"""The process of the step `loads`: adapters come to the device, alone and beside running requests.

Alone: one adapter from host memory (registered, as the memory tier's), and from a file in the page cache and from the
disk itself, through the runner's own way (`begin_adapter`, `poll_adapter`), beside a bare copy of as many bytes.

Beside: the engine runs as many sequences as it has room for, on eight adapters that are there. Then requests come for
adapters that are not. They find no room and wait, but their adapters are brought meanwhile; once all are there the
requests are withdrawn. So what differs from a quiet window is loading alone. A window with a burst of loads and a quiet
one of as many steps, from the same contexts, take turns; the gaps between the tokens of every sequence count.
"""

import hashlib
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import torch

from infra.bench.gpu.child import Line, arguments
from infra.bench.gpu.device import about, finish, free_bytes, opened
from infra.bench.gpu.serving import Serving, host_memory, in_host_memory, packed_bytes
from infra.bench.gpu.settings import Setting, cell_bytes, rank_row_bytes, setting_of
from kernels.triton_jit import cdiv
from runtime.device_runner import DeviceRunner, DeviceSizes
from runtime.engine import StepResult
from runtime.models.config import ModelConfig
from storage.packed import Packed, read_packed
from storage.verified_read import READERS, read_verified

_HOT = 8
_FILES = 4
# The first adapter that is not there yet; every burst takes others.
_FRESH = 1_000_000


class Gaps(NamedTuple):
    """Milliseconds between the tokens of a sequence, of all sequences."""

    p50: float
    p99: float
    number: int


class Loads:
    """A runner, and an engine over it for each number of adapters that stream in."""

    def __init__(self, setting: Setting, device: torch.device) -> None:
        self._setting, self._device = setting, device
        self._memory = host_memory(device)
        self._data = [packed_bytes(setting, setting.load_rank, seed) for seed in range(_FILES)]
        self._files = [in_host_memory(data, device) for data in self._data]
        self._rows = (_HOT + max(setting.load_counts)) * max(8, setting.load_rank)
        self._tokens = setting.load_prompt + 2 * setting.warm + 4 * setting.window + 4 * max(setting.load_counts) + 8
        num_blocks = setting.load_running * (cdiv(self._tokens, setting.block_tokens) + 1) + 1
        sizes = DeviceSizes(
            kv_bytes=num_blocks * setting.block_tokens * cell_bytes(setting),
            block_tokens=setting.block_tokens,
            adapter_rows=self._rows,
            max_slots=cdiv(self._rows, 8),
            max_rows=setting.load_running,
        )
        room = free_bytes(device)
        if sizes.kv_bytes + self._rows * rank_row_bytes(setting) > room:
            raise MemoryError(f"cache and pool do not fit into {room / 1e9:.0f} GB")
        config = ModelConfig.from_config(setting.config, {})
        self.runner = DeviceRunner.random(config, sizes, device=device.type, dtype=setting.dtype, seed=1)
        self._fresh, self._next, self._places = _FRESH, 0, range(0)

    # Alone.

    def from_host(self) -> Line:
        """From registered host memory."""
        return self._alone(lambda: self._files[0])

    def from_file(self, cold: bool) -> Line:
        """From a file, as the disk tier reads one that it has read before: all of it checked, into registered memory of
        an adapter that is gone; then parsed and copied. cold: its pages are not in memory."""
        data, memory = self._data[0], self._memory
        with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(READERS) as pool:
            path, digest = Path(folder) / "adapter", hashlib.sha256(data).hexdigest()
            path.write_bytes(data)
            with path.open("rb") as file:
                os.fsync(file.fileno())
                known = read_verified(file.fileno(), len(data), digest, None, memory.allocate, pool)[1]

                def read() -> Packed:
                    nonlocal known
                    buffer, known = read_verified(file.fileno(), len(data), digest, known, memory.allocate, pool)
                    return read_packed(buffer)

                return self._alone(read, lambda: _forget(path) if cold else None)

    def _alone(self, packed: Callable[[], Packed], before: Callable[[], object] = lambda: None) -> Line:
        """Milliseconds until a step could use it; the bare copy's in turns."""
        source = torch.empty(len(self._data[0]), dtype=torch.uint8, pin_memory=self._device.type == "cuda").random_()
        target = torch.empty_like(source, device=self._device)
        times, bare = list[float](), list[float]()
        for _ in range(1 + self._setting.rounds * 2):
            before()
            finish(self._device)
            began = time.perf_counter()
            self.runner.begin_adapter(0, 0, packed())
            while not self.runner.poll_adapter(0):
                pass
            times.append(time.perf_counter() - began)
            self.runner.release_slot(0)
            finish(self._device)
            began = time.perf_counter()
            target.copy_(source, non_blocking=True)
            finish(self._device)
            bare.append(time.perf_counter() - began)
        own, peer = (1e3 * statistics.median(found[1:]) for found in (times, bare))
        return {"ms": own, "bare_ms": peer, "bytes": len(self._data[0])}

    # Beside running requests.

    def streaming(self, count: int) -> Line:
        """Gaps with a burst of so many adapters and without one, and a burst as a curve."""
        serving = Serving(self.runner, self._setting, self._files, self._setting.load_running, self._rows)
        quiet, busy, took = list[float](), list[float](), list[float]()
        for index in range(1 + self._setting.rounds):
            watch = self._running(serving)
            seconds = self._burst(serving, watch, count)
            steps = len(watch.steps)
            still = self._running(serving)
            for _ in range(steps):
                still.take(serving.step())
            if index:  # the first brings what all of them use
                busy, quiet, took = busy + watch.gaps, quiet + still.gaps, [*took, seconds]
        watch = self._running(serving)
        for _ in range(self._setting.window // 2 + 1):
            watch.take(serving.step())
        asked = time.perf_counter()
        self._burst(serving, watch, count)
        serving.close()
        return {
            "quiet": _gaps(quiet)._asdict(),
            "busy": _gaps(busy)._asdict(),
            "burst_ms": 1e3 * statistics.median(took),
            "bytes": count * len(self._data[0]),
            "curve": watch.curve(asked),
        }

    def _running(self, serving: Serving) -> "_Watch":
        """New sequences in all places, past their prompts; so every window is of the same contexts."""
        setting, first = self._setting, self._next
        self._next += setting.load_running
        serving.abort(self._places)
        self._places = range(first, self._next)
        for number in self._places:
            serving.submit(number, setting.load_prompt, self._tokens - setting.load_prompt, number % _HOT)
        watch = _Watch(frozenset(self._places))
        while len(watch.seen) < setting.load_running:
            watch.take(serving.step())
        for _ in range(setting.warm):
            watch.take(serving.step())
        watch.gaps, watch.steps = [], []
        return watch

    def _burst(self, serving: Serving, watch: "_Watch", count: int) -> float:
        """Seconds from asking until all are there; at least a window's steps are taken."""
        numbers = range(self._fresh, self._fresh + count)
        self._fresh += count
        began, steps, seconds = time.perf_counter(), 0, 0.0
        for number in numbers:
            serving.submit(number, self._setting.load_prompt, 1, number)
        wanted = {serving.adapters.ref(number).digest for number in numbers}
        while wanted or steps < self._setting.window:
            result = serving.step()
            watch.take(result)
            steps += 1
            arrived = {status.digest for status in result.statuses if status.resident == "device"} & wanted
            watch.arrivals += [time.perf_counter()] * len(arrived)
            wanted -= arrived
            if not wanted and not seconds:
                seconds = time.perf_counter() - began
            if len(watch.steps) > self._tokens - self._setting.load_prompt - 2 * self._setting.warm - 4:
                raise RuntimeError(f"{len(wanted)} adapters had not come after {steps} steps")
        serving.abort(numbers)
        return seconds


class _Watch:
    """When every sequence last had a token."""

    def __init__(self, numbers: frozenset[int]) -> None:
        self._numbers = numbers
        self.seen = dict[int, float]()
        self.gaps = list[float]()
        self.steps = list[tuple[float, float]]()
        self.arrivals = list[float]()

    def take(self, result: StepResult) -> None:
        """A step's outputs, seen now."""
        now, longest = time.perf_counter(), 0.0
        for item in result.outputs:
            number = item.output.sequence_id
            if not item.output.token_ids or number not in self._numbers:
                continue
            if number in self.seen:
                gap = 1e3 * (now - self.seen[number])
                self.gaps.append(gap)
                longest = max(longest, gap)
            self.seen[number] = now
        if longest:
            self.steps.append((now, longest))

    def curve(self, asked: float) -> dict[str, Any]:
        """Times since the first step."""
        zero = self.steps[0][0] if self.steps else asked
        return {
            "steps": [(at - zero, gap) for at, gap in self.steps],
            "asked": asked - zero,
            "arrivals": [at - zero for at in self.arrivals],
        }


def _gaps(values: list[float]) -> Gaps:
    ordered = sorted(values)
    return Gaps(ordered[len(ordered) // 2], ordered[min(len(ordered) - 1, len(ordered) * 99 // 100)], len(ordered))


def _forget(path: Path) -> None:
    """Its pages leave the memory, as far as the system does as it is told."""
    if hasattr(os, "posix_fadvise"):
        with path.open("rb") as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def main() -> None:
    """Writes a line per case."""
    out, device_name = arguments()
    with opened(device_name) as device:
        setting = setting_of(device.type)
        out.write(about(device))
        loads = Loads(setting, device)
        out.measured("host", loads.from_host)
        for count in setting.load_counts:
            out.measured(f"stream.{count}", lambda count=count: loads.streaming(count))  # type: ignore[misc]
        out.measured("file", lambda: loads.from_file(cold=False))
        out.measured("disk", lambda: loads.from_file(cold=True))


if __name__ == "__main__":
    main()
