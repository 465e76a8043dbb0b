"""An engine on this thread, over a runner on the device, with adapters that lie in host memory already.

The runtime's loader answers from a thread of its own; here answers come before the next step, so that what is measured
is the way from host memory to the device and nothing above it. Memory is registered with the driver, as the memory
tier's is (`runtime/pinned.py`). A few files stand for any number of adapters: each digest has one of them.
"""

import io
import time
from collections.abc import Iterable, Sequence
from typing import Final

import numpy as np
import torch

from infra.bench.gpu.settings import Setting
from runtime.adapter import Way
from runtime.device_runner import DeviceRunner
from runtime.engine import Engine, EngineLimits, StepResult
from runtime.pinned import pinned
from runtime.protocol import AdapterRef, ModelInfo, SamplingParams, Submit
from storage.buffers import Recycled
from storage.geometry import MODULES
from storage.packed import LoraMatrices, Packed, read_packed, write_packed

OWNER: Final = 1
ACCOUNT: Final = "bench"
MAX_WAITING: Final = 2048
_HOST_BYTES: Final = 1 << 30


def packed_bytes(setting: Setting, rank: int, seed: int) -> bytes:
    """A packed adapter of all modules. All layers have the same numbers: random ones take long to make."""
    geometry, random = setting.geometry, np.random.default_rng(seed)
    wide = setting.itemsize == 4

    def values(rows: int, columns: int) -> np.ndarray:
        numbers = random.standard_normal((rows, columns), np.float32) * np.float32(columns**-0.5)
        return numbers if wide else (numbers.view(np.uint32) >> 16).astype(np.uint16)

    matrices = []
    for module in MODULES:
        out_features, in_features = geometry.shape(module)
        # Made as rank x out, because the file holds B transposed.
        a, b = values(rank, in_features), values(rank, out_features).T
        matrices += [LoraMatrices(layer, module, 1.0, a, b) for layer in range(geometry.num_layers)]
    file = io.BytesIO()
    write_packed(file, geometry, "float32" if wide else "bfloat16", matrices)
    return file.getvalue()


def in_host_memory(data: bytes, device: torch.device) -> Packed:
    """As the memory tier has it."""
    buffer = host_memory(device).allocate(len(data))
    buffer[:] = data
    return read_packed(buffer)


def host_memory(device: torch.device) -> Recycled:
    """The memory tier's."""
    return pinned(_HOST_BYTES) if device.type == "cuda" else Recycled(_HOST_BYTES)


class HostAdapters:
    """`runtime.adapter.Loads`. Adapter number n is made of the file n modulo their number."""

    def __init__(self, files: Sequence[Packed]) -> None:
        self._files, self._due = files, list[str]()

    def ref(self, number: int) -> AdapterRef:
        """The adapter of this number."""
        header = self._files[number % len(self._files)].header
        return AdapterRef(f"{number:064x}", f"{number}", header.payload_bytes, header.rank, f"{number}")

    def start(self, adapter: AdapterRef) -> None:
        """See `Loads`."""
        self._due.append(adapter.digest)

    def stop(self, digest: str) -> None:
        """It comes at once."""

    def warm(self, adapter: AdapterRef) -> None:
        """It is in host memory."""

    def release(self, digest: str) -> None:
        """The bytes stay."""

    def forget(self, digest: str) -> None:
        """The bytes stay."""

    def deliver(self, engine: Engine) -> None:
        """Answers what was asked since the last time."""
        due, self._due = self._due, []
        for digest in due:
            packed = self._files[int(digest, 16) % len(self._files)]
            engine.adapter_loaded(digest, packed, Way(source="memory"))


class Serving:
    """One engine. Sequences are numbered by the caller; nothing ends by itself before its `tokens`."""

    def __init__(
        self, runner: DeviceRunner, setting: Setting, files: Sequence[Packed], running: int, rows: int
    ) -> None:
        self.adapters = HostAdapters(files)
        model = ModelInfo(
            name=setting.name,
            dtype=setting.dtype,
            device=runner.device.type,
            num_parameters=runner.num_parameters,
            vocab_size=runner.vocab_size,
            max_sequence_tokens=runner.max_sequence_tokens,
            max_rank=rows,
            eos_token_ids=runner.eos_token_ids,
        )
        limits = EngineLimits(
            runner.num_blocks,
            setting.block_tokens,
            rows,
            max_running=running,
            max_waiting=MAX_WAITING,
            step_tokens=setting.step_tokens,
            prefix_cache=False,
        )
        self.engine = Engine(runner, model, limits, self.adapters, time.monotonic)
        self._runner = runner
        self._random = np.random.default_rng(5)
        self._vocab = runner.vocab_size

    def submit(self, number: int, prompt: int, tokens: int, adapter: int | None = None) -> None:
        """A sequence with a random prompt of so many tokens."""
        ids = tuple(self._random.integers(3, self._vocab, prompt).tolist())
        sampling = SamplingParams(max_tokens=tokens, temperature=0.0, ignore_eos=True)
        ref = None if adapter is None else self.adapters.ref(adapter)
        self.engine.submit(OWNER, Submit(number, ACCOUNT, ids, sampling, ref, timeout_s=600.0))

    def step(self) -> StepResult:
        """What was asked of the host is answered, then one step. Raises RuntimeError for a sequence that failed."""
        self.adapters.deliver(self.engine)
        result = self.engine.step()
        for item in result.outputs:
            if item.output.failure is not None:
                raise RuntimeError(item.output.failure.message)
        return result

    def abort(self, numbers: Iterable[int]) -> None:
        """Ends them without a word."""
        for number in numbers:
            self.engine.abort(OWNER, number)

    def close(self) -> None:
        """Everything ends and leaves the device, so that another engine may have the runner."""
        self.engine.abort_owner(OWNER)
        while self.step().progressed:
            pass
        for status in self.engine.adapters():
            self.engine.forget_adapter(status.digest)
        while self.step().progressed:
            pass
        self._runner.synchronize()
