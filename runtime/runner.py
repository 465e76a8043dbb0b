"""The device behind the engine: a base model, its key/value cache and its pool of adapters, on torch.

A step is: records -> tensors (`layers/step.py`) -> decoder -> logits of the sampled rows -> tokens (`sampler.py`).
A grammar's masks come between the logits and the sampler (`grammars/masks.py`). On a CPU with Numba a program takes the
place of the first two (`models/cpu_program.py`), and the weights keep the type of their files where that loses nothing;
without it torch computes, slower and with weights of the type that it computes in.
Everything here belongs to the engine thread.
"""

import contextlib
import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

import torch

from kernels.cpu import compiling
from runtime.batch import Batch, Row, Sampled
from runtime.errors import ConfigInvalid, DeviceLost
from runtime.grammars.masks import GrammarMasks
from runtime.held_base import HeldBase
from runtime.layers.adapter_pool import AdapterPool
from runtime.layers.kv_cache import KVCache
from runtime.layers.rotary import Rotations
from runtime.layers.row_limits import RowLimits
from runtime.layers.step import StepBuilder
from runtime.logprobs import scored
from runtime.model_size import ModelSize
from runtime.models.config import ModelConfig
from runtime.models.decoder import Decoder, load_decoder
from runtime.sampler import Logits, sample
from storage.packed import Packed

logger = logging.getLogger(__name__)

DTYPES: Final = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


Forward = Callable[[tuple[Row, ...]], Logits]
"""Rows that have been checked -> logits of those with `samples`."""


class TorchRunner(HeldBase):
    """Fulfils `runtime.batch.Runner`. Built by `load`."""

    def __init__(
        self, decoder: Decoder, cache: KVCache, pool: AdapterPool, limits: RowLimits, forward: Forward
    ) -> None:
        self._decoder, self._cache, self._pool, self._limits, self._forward = decoder, cache, pool, limits, forward
        self._masks = GrammarMasks()

    @classmethod
    def load(
        cls,
        folder: Path,
        *,
        device: str,
        dtype: str,
        threads: int,
        kv_bytes: int,
        block_tokens: int,
        adapter_rows: int,
        max_slots: int = 64,
        progress: Callable[[float], None] | None = None,
    ) -> "TorchRunner":
        """Loads a Hugging Face folder and allocates cache and pool; `progress` gets the fraction read, 0 to 1.

        threads: for torch in this whole process; 0 leaves its default. kv_bytes: upper bound of the cache.
        Raises ModelInvalid for the folder, ConfigInvalid for the other arguments.
        """
        torch_dtype, torch_device = dtype_named(dtype), device_named(device)
        if threads > 0:
            torch.set_num_threads(threads)
        config = ModelConfig.from_folder(folder)
        geometry = config.geometry
        if block_tokens < 1 or adapter_rows < 1 or max_slots < 1:
            raise ConfigInvalid("block_tokens, adapter_rows and max_slots must be at least 1")
        block_bytes = KVCache.block_bytes(geometry, block_tokens, torch_dtype)
        num_blocks = kv_bytes // block_bytes
        if num_blocks < 1:
            raise ConfigInvalid(f"kv_bytes = {kv_bytes}: one block of {block_tokens} tokens takes {block_bytes} bytes")
        try:
            cache = KVCache(geometry, num_blocks, block_tokens, torch_dtype, torch_device)
            pool = AdapterPool(geometry, adapter_rows, max_slots, torch_dtype, torch_device)
        except RuntimeError as error:  # torch's word for "out of memory"
            raise ConfigInvalid(
                f"kv_bytes = {kv_bytes} and adapter_rows = {adapter_rows} do not fit into the memory of {device}"
            ) from error
        program_computes = torch_device.type == "cpu" and compiling.available
        held = ModelSize.from_folder(folder).held_as(dtype) if program_computes else dtype
        decoder = load_decoder(folder, config, cache, torch_dtype, torch_device, progress, dtype_named(held))
        limits = RowLimits(
            num_blocks, block_tokens, min(config.max_positions, num_blocks * block_tokens), config.vocab_size
        )
        rotations = Rotations(config.kinds, geometry.head_dim, limits.max_positions, torch_device)
        if program_computes:
            kind = compiling.kind_of(held, dtype)
            if not compiling.is_compiled(kind):
                logger.info("compiling the kernels for this processor, which takes some fifteen seconds, once")
                compiling.compile_elsewhere(kind)
            from runtime.models.cpu_program import CpuProgram

            program = CpuProgram(decoder, cache, pool, rotations, limits.max_positions, torch.get_num_threads())
            # What torch still does takes microseconds, after which its helpers wait actively, for milliseconds, on the
            # processors that the program's threads need: half of the speed of a small model.
            torch.set_num_threads(1)
            return cls(decoder, cache, pool, limits, program.forward)
        steps = StepBuilder(cache, pool, config.kinds, rotations, torch_dtype, torch_device)
        return cls(decoder, cache, pool, limits, lambda rows: Logits(decoder.forward(steps.build(rows))))

    def execute(self, batch: Batch) -> list[Sampled]:
        """See `runtime.batch.Runner`."""
        rows = [row for row in batch.rows if row.samples]
        masks = self._masks.of(rows, self.vocab_size)
        logits = self._logits(batch)
        with torch.inference_mode(), device_errors():
            if masks is not None:
                masks.apply(logits.values)
                logits = Logits(logits.values)
            return scored(logits.values, rows, sample(logits, rows)) if rows else []

    def logits(self, batch: Batch) -> torch.Tensor:
        """The step up to the sampler: [rows with `samples`, vocab]. Raises RunnerMisused."""
        return self._logits(batch).values

    def _logits(self, batch: Batch) -> Logits:
        with torch.inference_mode(), device_errors():
            self._limits.check(batch.rows)
            return self._forward(batch.rows)

    def write_adapter(self, slot: int, row_offset: int, packed: Packed, first_layer: int, num_layers: int) -> None:
        """See `runtime.batch.Runner`."""
        with torch.inference_mode(), device_errors():
            self._pool.write(slot, row_offset, packed, first_layer, num_layers)

    def release_slot(self, slot: int) -> None:
        """See `runtime.batch.Runner`."""
        self._pool.release(slot)


@contextlib.contextmanager
def device_errors() -> Iterator[None]:
    """An error of the accelerator itself is sticky: nothing on it works again in this process."""
    try:
        yield
    except torch.AcceleratorError as error:
        raise DeviceLost(str(error)) from error


def free_card_bytes(name: str) -> int:
    """What is free on the card now. Raises ConfigInvalid."""
    return torch.cuda.mem_get_info(device_named(name))[0]


def dtype_named(name: str) -> torch.dtype:
    """Raises ConfigInvalid."""
    if name not in DTYPES:
        raise ConfigInvalid(f"dtype = {name!r}: allowed are {', '.join(DTYPES)}")
    return DTYPES[name]


def device_named(name: str) -> torch.device:
    """One that is there. Raises ConfigInvalid."""
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        raise ConfigInvalid(f"device = {name!r} cannot be used: {error}") from error
    return device
