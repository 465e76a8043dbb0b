"""The process of the step `adapters`: throughput of the engine over the number of adapters that share it.

As many sequences as the engine has room for, always: one that ends is followed by another, whose adapter is drawn by
Zipf's law (the n-th most popular is asked for 1 / n as often as the first). The pool holds the hottest hundred or so;
the others are brought from host memory when they are asked for. Tokens are counted over the time between the first
completed round of sequences and the last.
"""

import itertools
import random
import statistics
import time
from collections.abc import Iterator

import torch

from infra.bench.gpu.child import Line, arguments
from infra.bench.gpu.device import about, opened
from infra.bench.gpu.serving import Serving, in_host_memory, packed_bytes
from infra.bench.gpu.settings import Setting, cell_bytes, setting_of
from kernels.triton_jit import cdiv
from runtime.device_runner import DeviceRunner, DeviceSizes
from runtime.models.config import ModelConfig

_FILES = 4


class Zipf:
    """A runner and its pool, for engines with different numbers of adapters."""

    def __init__(self, setting: Setting, device: torch.device) -> None:
        self._setting = setting
        self._rows = setting.pool_adapters * max(8, setting.load_rank)
        tokens = setting.zipf_prompt + setting.zipf_tokens + 1
        num_blocks = setting.zipf_running * (cdiv(tokens, setting.block_tokens) + 1) + 1
        sizes = DeviceSizes(
            kv_bytes=num_blocks * setting.block_tokens * cell_bytes(setting),
            block_tokens=setting.block_tokens,
            adapter_rows=self._rows,
            max_slots=cdiv(self._rows, 8),
            max_rows=setting.zipf_running,
        )
        self._runner = DeviceRunner.random(
            ModelConfig.from_config(setting.config, {}), sizes, device=device.type, dtype=setting.dtype, seed=1
        )
        self._files = [in_host_memory(packed_bytes(setting, setting.load_rank, seed), device) for seed in range(_FILES)]

    def measured(self, count: int) -> Line:
        """Tokens a second with so many adapters."""
        setting = self._setting
        serving = Serving(self._runner, setting, self._files, setting.zipf_running, self._rows)
        drawn, numbers = zipf(count, seed=count), itertools.count()
        asked = dict[int, int]()

        def more() -> None:
            number = next(numbers)
            asked[number] = next(drawn)
            serving.submit(number, setting.zipf_prompt, setting.zipf_tokens, asked[number])

        # Twice as many as run: whoever ends leaves a place to one whose adapter is there already.
        for _ in range(2 * setting.zipf_running):
            more()
        ended, tokens, together = 0, 0, list[int]()
        began, first, last = 0.0, setting.zipf_running, (1 + setting.zipf_turns) * setting.zipf_running
        while ended < last:
            outputs = serving.step().outputs
            together += [len({asked[item.output.sequence_id] for item in outputs})] if outputs else []
            for item in outputs:
                tokens += bool(began) * len(item.output.token_ids)
                if item.output.finish_reason is not None:
                    ended += 1
                    more()
                    if ended == first:
                        began = time.perf_counter()
        seconds = time.perf_counter() - began
        stats = serving.engine.stats()
        serving.close()
        return {
            "rate": tokens / seconds,
            "used": len(set(asked.values())),
            "together": statistics.fmean(together),
            "resident": stats.adapters_resident,
            "evictions": stats.evictions,
            "steps": stats.steps,
        }


def zipf(count: int, seed: int) -> Iterator[int]:
    """Numbers below `count`, the n-th (from 1) 1 / n as often as the first, for ever."""
    drawn = random.Random(seed)
    weights = list(itertools.accumulate(1 / rank for rank in range(1, count + 1)))
    while True:
        yield drawn.choices(range(count), cum_weights=weights)[0]


def main() -> None:
    """Writes a line per number of adapters; the first is measured once before it counts, for kernels to compile."""
    out, device_name = arguments()
    with opened(device_name) as device:
        setting = setting_of(device.type)
        out.write(about(device))
        bench = Zipf(setting, device)
        if device.type == "cuda":
            bench.measured(setting.zipf_counts[-1])
        for count in setting.zipf_counts:
            out.measured(f"zipf.{count}", lambda count=count: bench.measured(count))  # type: ignore[misc]


if __name__ == "__main__":
    main()
