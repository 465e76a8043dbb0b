"""Our side of the decode benchmark: the runner with random weights, its steps started one ahead as the engine does.

Every sequence has its context in the cache from a real prefill of random tokens, once; every case then decodes from the
same place. A step's time is the time between two steps' tokens reaching the host, in turns with the same rows without
adapters: both see the same clocks. What the host did to start a step is in `host_ms`.
"""

import statistics
import time
from collections.abc import Sequence
from typing import Any

import torch

from infra.bench.gpu.child import Line, arguments
from infra.bench.gpu.decode_cases import Case, cases
from infra.bench.gpu.device import about, free_bytes, opened
from infra.bench.gpu.settings import Setting, cell_bytes, rank_row_bytes, setting_of, weight_bytes
from infra.bench.gpu.ttft_ours import FirstTokens
from kernels.triton_jit import cdiv
from runtime.batch import BASE_SLOT, PENDING, Batch, Row
from runtime.device_runner import DeviceRunner, DeviceSizes
from runtime.models.config import ModelConfig
from runtime.protocol import SamplingParams

# Of the card's memory: torch's libraries, activations, the allocator's slack.
_SPARE = 3 << 30
# What the times to the first token take, which come last and are worth more than the last step times.
_FIRST_TOKENS_S = 8.0
_GREEDY = SamplingParams(max_tokens=1 << 20, temperature=0.0, ignore_eos=True)


class Decoding:
    """A runner, and as many sequences as the memory holds."""

    def __init__(self, setting: Setting, device: torch.device) -> None:
        self._setting = setting
        most_adapters = max(len(case.lengths) for case in cases(setting))
        self._room = most_rank = max(setting.ranks)
        tokens = setting.context + max(setting.warm, setting.steps) + 2
        self._blocks = cdiv(tokens, setting.block_tokens)
        row_bytes = self._blocks * setting.block_tokens * cell_bytes(setting)
        adapter_rows = most_rank * most_adapters
        left = free_bytes(device) - weight_bytes(setting) - adapter_rows * rank_row_bytes(setting)
        if device.type == "cuda":
            left -= _SPARE
        longest = cdiv(max(setting.prompts), setting.block_tokens) + 2
        self.rows = min(max(setting.batches), left // row_bytes)
        num_blocks = max(self.rows * self._blocks, longest) + 1
        sizes = DeviceSizes(
            kv_bytes=num_blocks * setting.block_tokens * cell_bytes(setting),
            block_tokens=setting.block_tokens,
            adapter_rows=adapter_rows,
            max_slots=most_adapters,
            max_rows=max(case.batch for case in cases(setting)),
        )
        config = ModelConfig.from_config(setting.config, {})
        self.runner = DeviceRunner.random(config, sizes, device=device.type, dtype=setting.dtype, seed=1)
        self._random = torch.Generator().manual_seed(2)
        self._put = (0, 0)

    def prefill(self) -> None:
        """The context of every sequence, a few tokens less than a step's at a time."""
        setting = self._setting
        for sequence in range(self.rows):
            for start in range(0, setting.context, setting.step_tokens):
                count = min(setting.step_tokens, setting.context - start)
                ids = torch.randint(3, int(setting.config["vocab_size"]), (count,), generator=self._random).tolist()
                self.runner.execute(Batch((self._row(sequence, ids, start, BASE_SLOT),)))

    def measured(self, case: Case) -> Line:
        """Milliseconds of a step of this case, and of the base's in turns. Raises where the memory is too small."""
        if case.batch > self.rows:
            raise MemoryError(f"the cache holds {self.rows} sequences")
        self._adapters(case)
        turns = [case] if not case.lengths else [case, case.base]
        for turn in turns:
            self._steps(turn, self._setting.warm)
        rounds = [[self._steps(turn, self._setting.steps) for turn in turns] for _ in range(self._setting.rounds)]
        own, base = ([gap for turn in rounds for gap in turn[index][0]] for index in (0, len(turns) - 1))
        host = [gap for turn in rounds for gap in turn[0][1]]
        return {
            "ms": 1e3 * statistics.median(own),
            "base_ms": 1e3 * statistics.median(base),
            "host_ms": 1e3 * statistics.median(host),
        }

    def _adapters(self, case: Case) -> None:
        """Random ones in slots 0, 1, ..., each at the same rows whatever its rank."""
        count, rank = len(case.lengths), case.rank
        if count and (self._put[1] != rank or self._put[0] < count):
            for slot in range(count):
                self.runner.release_slot(slot)
                self.runner.put_random_adapter(slot, slot * self._room, rank, seed=slot)
            self._put = count, rank

    def _steps(self, case: Case, count: int) -> tuple[list[float], list[float]]:
        """Seconds between steps' tokens, and of the host's calls that start a step."""
        slots = [slot for slot, rows in enumerate(case.lengths) for _ in range(rows)] or [BASE_SLOT] * case.batch
        start = self._setting.context
        batches = [
            Batch(tuple(self._row(i, (PENDING if step else 3,), start + step, slot) for i, slot in enumerate(slots)))
            for step in range(count + 2)
        ]
        gaps, host, last = list[float](), list[float](), 0.0
        flight = self.runner.launch(batches[0])
        for batch in batches[1:]:
            began = time.perf_counter()
            following = self.runner.launch(batch)
            host.append(time.perf_counter() - began)
            self.runner.finish(flight)
            now = time.perf_counter()
            if last:
                gaps.append(now - last)
            last, flight = now, following
        self.runner.finish(flight)
        return gaps, host

    def _row(self, sequence: int, ids: Sequence[int], start: int, slot: int) -> Row:
        first = sequence * self._blocks
        end = start + len(ids)
        return Row(
            sequence_id=sequence,
            token_ids=ids,
            start=start,
            block_table=range(first, first + cdiv(end, self._setting.block_tokens)),
            slot=slot,
            samples=True,
            sampling=_GREEDY,
            history=range(end),
            prompt_tokens=self._setting.context,
            seed=sequence,
        )


def main() -> None:
    """Writes a line per case, then what the graphs cost, then times to the first token."""
    out, device_name = arguments()
    with opened(device_name) as device:
        setting = setting_of(device.type)
        out.write(about(device))
        began = time.perf_counter()
        decoding = Decoding(setting, device)
        out.write({"key": "start", "seconds": time.perf_counter() - began})
        decoding.prefill()
        before = _base_before_adapters(decoding, setting)
        for case in cases(setting):
            out.measured(str(case), lambda case=case: decoding.measured(case), _FIRST_TOKENS_S)  # type: ignore[misc]
        after = decoding.measured(Case(before[0], "base"))
        out.write({"key": "idle", "batch": before[0], "ms": after["ms"], "before_ms": before[1]})
        report: Any = decoding.runner.graphs.report
        out.write({"key": "graphs", **report._asdict()})
        first = FirstTokens(decoding.runner, setting)
        for prompt in setting.prompts:
            for adapter in (False, True):
                name = f"ttft.{prompt}{'.adapter' if adapter else ''}"
                out.measured(name, lambda prompt=prompt, adapter=adapter: first.measured(prompt, adapter))  # type: ignore[misc]


def _base_before_adapters(decoding: Decoding, setting: Setting) -> tuple[int, float]:
    """A base step while no adapter is on the device: what LoRA may not cost those who do not use it."""
    batch = max(batch for batch in setting.batches if batch <= 8)
    return batch, decoding.measured(Case(batch, "base"))["ms"]


if __name__ == "__main__":
    main()
