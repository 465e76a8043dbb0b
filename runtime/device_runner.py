"""The GPU behind the engine: steps are started one ahead, decode steps as graphs, and adapters come beside them.

    launch:  records ──> one pinned buffer ──copy──> kernels ──> logits ──> tokens on the device ──copy──> pinned, mark
    finish:                                                                             wait for the mark, read

A step's tokens stay on the device, where the next step takes its input from, so the host may start that one before it
has read them. Rows that need the host's word on what they may say (a grammar, penalties, a logit_bias) are sampled once
more after the step's own sampling, from logits that were changed as on the CPU. Everything belongs to the engine thread
and to one queue; adapters have another (`layers/adapter_copies.py`).

On a CPU, in Triton's interpreter, the same code runs for tests: without graphs, streams and pinned memory.
"""

import logging
import math
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, NamedTuple

import torch

from kernels.paged_decode import DecodeScratch, decode_splits
from kernels.sampling import sample
from kernels.token_scores import TokenScores, token_scores
from kernels.triton_jit import HAS_TRITON, cdiv, next_power_of_2
from runtime.batch import BASE_SLOT, PENDING, Batch, Row, Sampled, Scored
from runtime.errors import ConfigInvalid, LogitsInvalid, RunnerMisused
from runtime.grammars.masks import GrammarMasks
from runtime.graphs import Capture, CudaCapture, DecodeGraphs, again
from runtime.held_base import HeldBase
from runtime.layers.adapter_copies import AdapterCopies, Start
from runtime.layers.adapter_pool import AdapterPool
from runtime.layers.device_step import DeviceStep, HostStep, StepWriter
from runtime.layers.kv_cache import KVCache
from runtime.layers.rotary import Rotations
from runtime.layers.row_limits import RowLimits
from runtime.logprobs import score_of
from runtime.memory_plan import STAGING_BYTES, Split, staging_bytes
from runtime.models.config import ModelConfig
from runtime.models.decoder import Decoder, load_decoder
from runtime.models.device_decoder import DeviceDecoder
from runtime.models.random_weights import fill_with_random, random_decoder
from runtime.protocol import SamplingParams
from runtime.queues import Mark, Queues, Turn, host_tensor, queues_of
from runtime.runner import device_errors, device_named, dtype_named
from runtime.sampler import adjust, is_adjusted
from storage.geometry import MODULES
from storage.packed import Packed

logger = logging.getLogger(__name__)

# A step that is being written, one that waits for its copy, one that runs, and one to spare.
_BUFFERS: Final = 4
_FLIGHTS: Final = 2
_GREEDY: Final = SamplingParams(temperature=0.0)
# Few LoRA tiles, and more than 64: the plan of a launch differs.
_WARM_CHUNKS: Final = (64, 1100)
# Stands for the processors of a GPU where there is none; any number gives the same results.
_PROCESSORS: Final = 4


class DeviceSizes(NamedTuple):
    """kv_bytes: upper bound of the cache. max_rows: of a step that may be a graph, and of tokens that the next step may
    continue: at least as many as ever run at once. slab_bytes: see `AdapterCopies`."""

    kv_bytes: int
    block_tokens: int
    adapter_rows: int
    max_slots: int = 64
    max_rows: int = 64
    slab_bytes: int = STAGING_BYTES


@dataclass(frozen=True)
class _Flight:
    """A step under way. tokens and scores are in host memory, readable once `mark` is reached."""

    rows: Sequence[Row]
    tokens: torch.Tensor
    asking: Sequence[int]
    scores: TokenScores | None
    mark: Mark


class DeviceRunner(HeldBase):
    """Fulfils `Runner`, `RunsAhead` and `CopiesBeside` of `runtime.batch`. Built by `load` or `random`.

    `graphs.report` says what was captured. capture, queues, start: what stands for graphs, streams and threads.
    """

    def __init__(
        self,
        make_decoder: Callable[[KVCache, torch.dtype, torch.device], Decoder],
        config: ModelConfig,
        sizes: DeviceSizes,
        *,
        device: str,
        dtype: str,
        capture: Capture | None = None,
        queues: Queues | None = None,
        start: Start | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        torch_dtype, self.device = dtype_named(dtype), device_named(device)
        if self.device.type == "cuda" and not HAS_TRITON:
            raise ConfigInvalid("device = 'cuda' needs Triton: pip install 'lorikeet[gpu]'")
        if min(sizes.block_tokens, sizes.adapter_rows, sizes.max_slots, sizes.max_rows) < 1:
            raise ConfigInvalid("block_tokens, adapter_rows, max_slots and max_rows must be at least 1")
        geometry, block_bytes = config.geometry, KVCache.block_bytes(config.geometry, sizes.block_tokens, torch_dtype)
        num_blocks = sizes.kv_bytes // block_bytes
        if num_blocks < 1:
            raise ConfigInvalid(f"kv_bytes = {sizes.kv_bytes}: one block takes {block_bytes} bytes")
        self._buckets, self._masks = row_buckets(sizes.max_rows), GrammarMasks()
        longest = min(config.max_positions, num_blocks * sizes.block_tokens)
        self._limits = RowLimits(num_blocks, sizes.block_tokens, longest, config.vocab_size)
        self.queues = queues or queues_of(self.device)
        try:
            self._cache = KVCache(geometry, num_blocks, sizes.block_tokens, torch_dtype, self.device)
            self._pool = AdapterPool(geometry, sizes.adapter_rows, sizes.max_slots, torch_dtype, self.device)
            self._decoder = make_decoder(self._cache, torch_dtype, self.device)
            rotations = Rotations(config.kinds, geometry.head_dim, longest, self.device)
            self._model = DeviceDecoder(self._decoder, self._pool, rotations, self.queues)
            table_blocks = cdiv(longest, sizes.block_tokens)
            self._writer = StepWriter(self._pool, sizes.block_tokens, num_blocks, table_blocks, self._buckets)
            self._copies = AdapterCopies(self._pool, self.queues, slab_bytes=sizes.slab_bytes, start=start)
            self._make_buffers(config.vocab_size, torch_dtype)
            if self.device.type == "cuda":
                torch.cuda.synchronize(self.device)  # what the default queue made is there for the others
        except torch.OutOfMemoryError as error:
            raise ConfigInvalid(_too_large(config, sizes, torch_dtype, self.device)) from error
        if capture is None:
            capture = CudaCapture() if self.device.type == "cuda" else again
        self.graphs = DecodeGraphs(capture, clock)

    def _make_buffers(self, vocab_size: int, dtype: torch.dtype) -> None:
        """What graphs read and write at fixed addresses, and what travels from and to the host."""
        most, device = self._buckets[-1], self.device
        self._fixed = torch.zeros(self._writer.most_bytes, dtype=torch.uint8, device=device)
        self._logits = torch.zeros((most, vocab_size), dtype=dtype, device=device)
        self._drawn = torch.zeros(most, dtype=torch.int64, device=device)
        self._follow = torch.zeros(most, dtype=torch.int64, device=device)
        self._scratches: dict[int, DecodeScratch] = {}
        self._steps = 0
        self._drawn_at: dict[int, int] = {}
        self._tokens = deque(host_tensor((most,), torch.int64, device) for _ in range(_FLIGHTS + 1))
        self._buffers = deque(Turn(host_tensor((0,), torch.uint8, device)) for _ in range(_BUFFERS))

    @classmethod
    def load(
        cls,
        folder: Path,
        sizes: DeviceSizes,
        *,
        device: str,
        dtype: str,
        progress: Callable[[float], None] | None = None,
        capture: Capture | None = None,
        queues: Queues | None = None,
        start: Start | None = None,
    ) -> "DeviceRunner":
        """Loads a Hugging Face folder; `progress` gets the fraction read, 0 to 1.

        Raises ModelInvalid for the folder, ConfigInvalid for the other arguments.
        """
        config = ModelConfig.from_folder(folder)

        def make(cache: KVCache, dtype: torch.dtype, device: torch.device) -> Decoder:
            return load_decoder(folder, config, cache, dtype, device, progress)

        return cls(make, config, sizes, device=device, dtype=dtype, capture=capture, queues=queues, start=start)

    @classmethod
    def random(
        cls,
        config: ModelConfig,
        sizes: DeviceSizes,
        *,
        device: str,
        dtype: str,
        seed: int = 0,
        capture: Capture | None = None,
        queues: Queues | None = None,
        start: Start | None = None,
    ) -> "DeviceRunner":
        """A model of random weights that are made on the device: for benches."""

        def make(cache: KVCache, dtype: torch.dtype, device: torch.device) -> Decoder:
            return random_decoder(config, cache, dtype, device, seed)

        return cls(make, config, sizes, device=device, dtype=dtype, capture=capture, queues=queues, start=start)

    @property
    def weight_bytes(self) -> int:
        """What a decode step reads of the base: all of it but the embedding, unless that is the head too."""
        decoder = self._decoder
        matrices = [tensor for layer in decoder.layers for tensor in
                    (layer.attention.qkv.weight, layer.attention.o.weight, layer.mlp.gate_up.weight,
                     layer.mlp.down.weight)]  # fmt: skip
        return sum(tensor.nbytes for tensor in (*matrices, decoder.head))

    # Steps.

    def execute(self, batch: Batch) -> list[Sampled]:
        """See `runtime.batch.Runner`."""
        flight = self.launch(batch)
        found = self.finish(flight)
        broken = tuple(row.sequence_id for row, one in zip(flight.rows, found, strict=True) if one is None)
        if broken:
            raise LogitsInvalid(broken)
        return [one for one in found if one is not None]

    def launch(self, batch: Batch) -> _Flight:
        """See `runtime.batch.RunsAhead`."""
        with torch.inference_mode(), device_errors():
            self._limits.check(batch.rows, ahead=True)
            rows = [row for row in batch.rows if row.samples]
            if len(rows) > self._buckets[-1]:
                raise RunnerMisused(f"{len(rows)} tokens are sampled, {self._buckets[-1]} at most")
            adjusted = any(is_adjusted(row.sampling) for row in rows)
            if adjusted and any(row.sampling.has_penalties and row.history[-1] == PENDING for row in rows):
                raise RunnerMisused("a row with penalties runs ahead of its own history")
            masks = self._masks.of(rows, self.vocab_size)
            with self.queues.compute.use():
                step = self._start(batch.rows)
                if masks is not None or adjusted:
                    logits = self._logits[: len(rows)]
                    if masks is not None:
                        masks.apply(logits)
                    if adjusted:
                        logits = logits.float() if logits.dtype != torch.float32 else logits.clone()
                        adjust(logits, rows)
                    columns = (column[: len(rows)] for column in step.sampling)
                    self._keep(sample(logits, type(step.sampling)(*columns)))
                return self._read_back(batch.rows, rows)

    def finish(self, flight: _Flight) -> list[Sampled | None]:
        """See `runtime.batch.RunsAhead`."""
        with device_errors():
            flight.mark.wait()
        tokens: list[int] = flight.tokens.tolist()
        found: list[Sampled | None] = [None if token < 0 else token for token in tokens]
        if flight.scores is not None:
            own, values, words = (column.tolist() for column in flight.scores)
            for line, index in enumerate(flight.asking):
                if tokens[index] >= 0:
                    score = score_of(flight.rows[index], own[line], values[line], words[line])
                    found[index] = Scored(tokens[index], score)
        return found

    def logits(self, batch: Batch) -> torch.Tensor:
        """[rows with `samples`, vocab] of a step that is run for them, a copy: for tests. Raises RunnerMisused."""
        return self.last_logits(len(self.finish(self.launch(batch))))

    def last_logits(self, count: int) -> torch.Tensor:
        """Of the step that was launched last, which has ended, a copy: for tests."""
        return self._logits[:count].clone()

    def synchronize(self) -> None:
        """Waits for all steps and copies."""
        for queue in self.queues:
            queue.mark().wait()

    def _start(self, rows: Sequence[Row]) -> DeviceStep:
        """Writes the step, sends it and starts it."""
        self._steps += 1
        step = self._writer.plan(rows)
        size = step.layout.num_bytes
        turn = self._buffers[0]
        self._buffers.rotate(-1)
        if turn.mark is not None:
            turn.mark.wait()  # with a copy of four steps ago, long over
        if turn.tensor.numel() < size:
            turn.tensor = host_tensor((next_power_of_2(size),), torch.uint8, self.device)
        self._writer.write(step, rows, self._drawn_at, turn.tensor.numpy())
        target = self._fixed[:size] if step.shape else torch.empty(size, dtype=torch.uint8, device=self.device)
        target.copy_(turn.tensor[:size], non_blocking=True)
        turn.mark = self.queues.compute.mark()
        device_step = self._writer.read(step, target, self._scratch(step))
        if step.shape is None:
            self._run(device_step)
        else:
            self.graphs.run(step.shape, lambda: self._run(device_step))
        return device_step

    def _run(self, step: DeviceStep) -> None:
        """What a graph holds: from the step's buffer to `_logits`, `_drawn` and `_follow`."""
        logits = self._model.forward(step, self._follow, self._logits[: step.num_sampled])
        if step.num_sampled:
            self._keep(sample(logits, step.sampling))

    def _keep(self, tokens: torch.Tensor) -> None:
        """The next step goes on from these, and from word 0 where there is none: its row is not looked at."""
        self._drawn[: len(tokens)].copy_(tokens)
        torch.clamp(tokens, min=0, out=self._follow[: len(tokens)])

    def _read_back(self, all_rows: Sequence[Row], rows: Sequence[Row]) -> _Flight:
        """Sends home what is wanted of the step."""
        count = len(rows)
        tokens = self._tokens[0][:count]
        self._tokens.rotate(-1)
        tokens.copy_(self._drawn[:count], non_blocking=True)
        asking = [index for index, row in enumerate(rows) if row.sampling.top_logprobs is not None]
        scores = None
        if asking:
            most = max(rows[index].sampling.top_logprobs or 0 for index in asking)
            lines = self._sent(torch.tensor(asking))
            scores = TokenScores(*map(self._home, token_scores(self._logits[lines], self._drawn[lines], most)))
        mark = self.queues.compute.mark()
        self._copies.read_by_step(frozenset(row.slot for row in all_rows), mark)
        self._drawn_at = {row.sequence_id: index for index, row in enumerate(rows)}
        return _Flight(rows, tokens, asking, scores, mark)

    def _sent(self, values: torch.Tensor) -> torch.Tensor:
        if self.device.type != "cuda":
            return values
        return values.pin_memory().to(self.device, non_blocking=True)

    def _home(self, values: torch.Tensor) -> torch.Tensor:
        return host_tensor(tuple(values.shape), values.dtype, self.device).copy_(values, non_blocking=True)

    def _scratch(self, step: HostStep) -> DecodeScratch | None:
        """For the step's decode rows, one by bucket: its address must not change while a graph knows it."""
        rows = step.layout.sizes.rows
        if not rows:
            return None
        bucket = next((bucket for bucket in self._buckets if bucket >= rows), next_power_of_2(rows))
        if bucket not in self._scratches:
            geometry = self.geometry
            processors = _PROCESSORS
            if self.device.type == "cuda":
                processors = torch.cuda.get_device_properties(self.device).multi_processor_count
            splits = decode_splits(bucket, geometry.num_kv_heads, self._limits.max_positions, processors)
            self._scratches[bucket] = DecodeScratch.make(
                bucket, geometry.num_heads, geometry.num_kv_heads, geometry.head_dim, splits, self.device
            )
        return self._scratches[bucket]

    def warm_up(self) -> int:
        """Runs a step of every kind, so that none compiles, loads or captures anything for the first time when somebody
        waits for it: base-only decode steps of all sizes are captured; kernels of the others are compiled. Returns the
        number of steps. To be called while nothing is in the cache and the pool."""
        before, block = self._steps, self._limits.block_tokens
        longest = min(self._limits.max_positions, self._cache.num_blocks * block)
        most = min(self._buckets[-1], self._cache.num_blocks)
        slots = list(range(min(most, self._pool.max_slots, self._pool.num_rows)))
        for slot in slots:
            self.put_random_adapter(slot, slot, 1, seed=slot)
        for slot in (BASE_SLOT, 0):
            for tokens in sorted({min(tokens, longest) for tokens in _WARM_CHUNKS}):
                self.execute(Batch((_warm_row(0, tokens, list(range(cdiv(tokens, block))), slot),)))
        for rows in (bucket for bucket in self._buckets if bucket <= most):
            base = [BASE_SLOT] * rows
            # Tiles of one token, as many as there can be, and of sixteen.
            for kinds in (base, base, [*base, *slots][-rows:], [0] * rows):
                self.execute(Batch(tuple(_warm_row(row, 1, [row], slot) for row, slot in enumerate(kinds))))
        # A prompt beside them: its step is a mixed one, with other kernels for the tiles of one token.
        prompt = _warm_row(0, 2, list(range(cdiv(2, block))), BASE_SLOT)
        first = len(prompt.block_table)
        for rows in sorted({min(bucket, len(slots), most - first) for bucket in self._buckets}):
            if rows > 0 and longest > 1:
                lines = (_warm_row(row, 1, [row], slot) for row, slot in enumerate(slots[:rows], first))
                self.execute(Batch((prompt, *lines)))
        for slot in slots:
            self.release_slot(slot)
        self.synchronize()
        self._drawn_at = {}
        return self._steps - before

    # Adapters.

    def begin_adapter(self, slot: int, row_offset: int, packed: Packed) -> None:
        """See `runtime.batch.CopiesBeside`."""
        with torch.inference_mode(), device_errors():
            self._copies.begin(slot, row_offset, packed)

    def poll_adapter(self, slot: int) -> bool:
        """See `runtime.batch.CopiesBeside`."""
        with torch.inference_mode(), device_errors():
            return self._copies.poll(slot)

    def write_adapter(self, slot: int, row_offset: int, packed: Packed, first_layer: int, num_layers: int) -> None:
        """See `runtime.batch.Runner`: all layers at once, and waited for."""
        if first_layer or num_layers != self.geometry.num_layers:
            raise RunnerMisused("on a device an adapter is written whole")
        with torch.inference_mode(), device_errors():
            self._copies.begin(slot, row_offset, packed)
            self._copies.finish(slot)

    def put_random_adapter(self, slot: int, row_offset: int, rank: int, seed: int) -> None:
        """Random rows of all modules, made on the device: for benches. The slot is READY afterwards."""
        with torch.inference_mode(), device_errors():
            fill_with_random(self._pool, slot, row_offset, rank, seed)
            self.synchronize()

    def release_slot(self, slot: int) -> None:
        """See `runtime.batch.Runner`."""
        with device_errors():
            self._copies.release(slot)


def _warm_row(number: int, tokens: int, blocks: list[int], slot: int) -> Row:
    return Row(number, [0] * tokens, 0, blocks, slot, True, _GREEDY, [0] * tokens, tokens, 0)


def _too_large(config: ModelConfig, sizes: DeviceSizes, dtype: torch.dtype, device: torch.device) -> str:
    """What was asked of the device, part by part."""
    geometry = config.geometry
    row = sum(sum(geometry.shape(module)) for module in MODULES) * geometry.num_layers * dtype.itemsize
    matrices = sum(math.prod(geometry.shape(module)) for module in MODULES) * geometry.num_layers
    words = config.vocab_size * geometry.hidden_size * (1 if config.ties_embedding else 2)
    split = Split(
        weights=(matrices + words) * dtype.itemsize,
        adapters=row * sizes.adapter_rows,
        working=config.vocab_size * sizes.max_rows * dtype.itemsize,
        kv=sizes.kv_bytes,
        staging=staging_bytes(geometry, sizes.adapter_rows, sizes.slab_bytes),
    )
    return f"the model does not fit on {device}: {split}; lower kv_bytes or adapter_rows"


def row_buckets(max_rows: int) -> list[int]:
    """Numbers of rows that decode steps are rounded up to: few, and none more than half too large."""
    buckets = [number for power in range(12) for number in (1 << power, 3 << power) if number not in (3, 6, 12)]
    return sorted({number for number in buckets if number < max_rows} | {max_rows})
