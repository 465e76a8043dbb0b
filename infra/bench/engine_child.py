"""Our side, in process: the engine on its thread over a real runner, as `runtime/process.py` builds it; no socket.

`batch` submits all sequences at once and stamps every step. `overhead` does the same and says what a step costs
outside the model: the whole of `Engine.step` minus the runner's `execute` (scheduler, books, outputs), and the part
of `execute` that turns records into tensors (`PassBuilder.build`), from wrappers around exactly these three calls.
"""

import argparse
import asyncio
import queue
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from infra.bench.child import Times, serve
from infra.bench.children import THREADS
from infra.bench.folders import adapter_refs
from runtime.adapter import Way
from runtime.batch import Batch, Row, Sampled
from runtime.collector import settle
from runtime.engine import Engine, EngineLimits, StepResult
from runtime.engine_thread import EngineThread
from runtime.errors import EngineStopped
from runtime.layers.cpu_step import PassBuilder
from runtime.own_thread import in_own_thread
from runtime.protocol import AdapterRef, ModelInfo, SamplingParams, Submit
from runtime.runner import TorchRunner
from storage.packed import Packed, read_packed

BLOCK_TOKENS = 16
ADAPTER_ROWS = 512
MAX_RUNNING = 64
KV_TOKENS = 64 * 1024


class TimedRunner:
    """The runner that it holds, with the seconds inside `execute`."""

    def __init__(self, runner: TorchRunner) -> None:
        self._runner = runner
        self.execute_s: list[float] = []

    def execute(self, batch: Batch) -> Sequence[Sampled]:
        began = time.perf_counter()
        tokens = self._runner.execute(batch)
        self.execute_s.append(time.perf_counter() - began)
        return tokens

    def write_adapter(self, slot: int, row_offset: int, packed: Packed, first_layer: int, num_layers: int) -> None:
        self._runner.write_adapter(slot, row_offset, packed, first_layer, num_layers)

    def release_slot(self, slot: int) -> None:
        self._runner.release_slot(slot)


class TimedEngine(Engine):
    """The engine, with the seconds of each step that ran the model."""

    def __init__(self, runner: TimedRunner, *arguments: Any) -> None:
        super().__init__(runner, *arguments)
        self._timed, self.step_s = runner, list[float]()

    def step(self) -> StepResult:
        executed, began = len(self._timed.execute_s), time.perf_counter()
        result = super().step()
        if len(self._timed.execute_s) > executed:
            self.step_s.append(time.perf_counter() - began)
        return result


class Adapters:
    """`Loads` with every adapter in memory: answers come at once, through the engine's own queue."""

    def __init__(self, folder: Path) -> None:
        self.refs = adapter_refs(folder)
        self._files = {ref.digest: folder / "packed" / ref.object_key for ref in self.refs.values()}
        self._packed: dict[str, Packed] = {}
        self.post: Callable[[Callable[[Engine], None]], None]

    def start(self, adapter: AdapterRef) -> None:
        if adapter.digest not in self._packed:
            self._packed[adapter.digest] = read_packed(self._files[adapter.digest].read_bytes())
        packed = self._packed[adapter.digest]
        self.post(lambda engine: engine.adapter_loaded(adapter.digest, packed, Way()))

    def stop(self, digest: str) -> None:
        """It comes at once."""

    def warm(self, adapter: AdapterRef) -> None:
        """Nothing is faster than what is here."""

    def release(self, digest: str) -> None:
        """The bytes stay."""

    def forget(self, digest: str) -> None:
        """The bytes stay."""


class EngineChild:
    """One engine for the child's life."""

    def __init__(self, folder: Path, dtype: str) -> None:
        self._adapters = Adapters(folder)
        runner = self._runner = asyncio.run(in_own_thread(lambda: _runner(folder / "model", dtype), "loading"))
        self._timed = TimedRunner(runner)
        model = ModelInfo(
            name=folder.name,
            dtype=dtype,
            device="cpu",
            num_parameters=runner.num_parameters,
            vocab_size=runner.vocab_size,
            max_sequence_tokens=runner.max_sequence_tokens,
            max_rank=ADAPTER_ROWS,
            eos_token_ids=runner.eos_token_ids,
        )
        limits = EngineLimits(runner.num_blocks, BLOCK_TOKENS, ADAPTER_ROWS, max_running=MAX_RUNNING)
        self._engine = TimedEngine(self._timed, model, limits, self._adapters, time.monotonic)
        self._results: queue.SimpleQueue[StepResult | BaseException | None] = queue.SimpleQueue()
        self._times, self._answered = Times(), set[int]()
        self._thread = EngineThread(self._engine, time.monotonic, on_step=self._stepped, on_end=self._results.put)
        self._adapters.post = self._thread.post
        settle()
        self._thread.start()

    def batch(self, prompts: list[list[int]], adapters: list[str | None], tokens: int) -> dict[str, Any]:
        """See `children.Child.batch`."""
        sampling = SamplingParams(max_tokens=tokens, temperature=0.0, ignore_eos=True)
        refs = [None if name is None else self._adapters.refs[name] for name in adapters]
        requests = [
            Submit(number, "bench", tuple(prompt), sampling, ref, timeout_s=600.0)
            for number, (prompt, ref) in enumerate(zip(prompts, refs, strict=True))
        ]
        answers: list[list[int]] = [[] for _ in requests]
        self._times, self._answered = Times(), set()

        def submit(engine: Engine) -> None:
            for request in requests:
                engine.submit(1, request)

        # One command, so that all of them are there before the next step.
        self._thread.post(submit)
        unfinished = len(requests)
        while unfinished:
            result = self._results.get()
            if result is None or isinstance(result, BaseException):
                raise EngineStopped(f"the engine ended: {result}")
            for item in result.outputs:
                if item.output.failure is not None:
                    raise RuntimeError(item.output.failure.message)
                answers[item.output.sequence_id] += item.output.token_ids
                unfinished -= item.output.finish_reason is not None
        return self._times.answer(answers)

    def overhead(self, prompts: list[list[int]], adapters: list[str | None], tokens: int) -> dict[str, list[float]]:
        """Milliseconds per decode step: the engine's own, the building of tensors, and the whole."""
        build_s: list[float] = []
        build = PassBuilder.build

        def timed(builder: PassBuilder, rows: Sequence[Row]) -> Any:
            began = time.perf_counter()
            step = list(build(builder, rows))
            build_s.append(time.perf_counter() - began)
            return step

        PassBuilder.build = timed  # type: ignore[method-assign, assignment]  # for this call only
        executed, stepped = len(self._timed.execute_s), len(self._engine.step_s)
        try:
            self.batch(prompts, adapters, tokens)
        finally:
            PassBuilder.build = build  # type: ignore[method-assign]
        count = tokens - 2  # neither the prefill nor the step that ends them all
        execute, step = (
            self._timed.execute_s[executed:][-count - 1 : -1],
            self._engine.step_s[stepped:][-count - 1 : -1],
        )
        return {
            "engine_ms": [1e3 * (whole - inner) for whole, inner in zip(step, execute, strict=True)],
            "build_ms": [1e3 * seconds for seconds in build_s[-count - 1 : -1]],
            "step_ms": [1e3 * seconds for seconds in step],
        }

    def _stepped(self, result: StepResult) -> None:
        said = [item.output for item in result.outputs if item.output.token_ids]
        if said:
            self._answered.update(output.sequence_id for output in said)
            self._times.step(sum(len(output.token_ids) for output in said), len(self._answered))
        self._results.put(result)


def _runner(folder: Path, dtype: str) -> TorchRunner:
    from storage.geometry import Geometry

    geometry = Geometry.from_folder(folder)
    cell = geometry.num_layers * 2 * geometry.num_kv_heads * geometry.head_dim * (4 if dtype == "float32" else 2)
    return TorchRunner.load(
        folder,
        device="cpu",
        dtype=dtype,
        threads=THREADS,
        kv_bytes=min(cell * KV_TOKENS, 1024**3),
        block_tokens=BLOCK_TOKENS,
        adapter_rows=ADAPTER_ROWS,
        max_slots=ADAPTER_ROWS // 8,
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("dtype")
    options = parser.parse_args()
    child = EngineChild(options.folder, options.dtype)
    serve({"batch": child.batch, "overhead": child.overhead})
