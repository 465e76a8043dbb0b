"""The runner on a GPU: graphs against eager steps bit for bit, steps ahead of the host, adapters that come meanwhile,
and an engine against transformers. The bodies are those of `tests/runtime/device_trials.py`.

`tests/runtime/test_gpu_runner_tests.py` runs every test of this file interpreted, with other values for the capitals.
"""

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from runtime.adapter import Way
from runtime.batch import BASE_SLOT
from runtime.device_runner import DeviceRunner, DeviceSizes
from runtime.engine import Engine, EngineLimits
from runtime.graphs import again
from runtime.models.config import ModelConfig
from runtime.protocol import AdapterRef, ModelInfo, SamplingParams, Submit
from storage.geometry import MODULES, Geometry
from storage.packed import LoraMatrices, Packed, read_packed, write_packed
from tests.runtime.device_trials import DRAWN, assert_same, jobs_for, mixed_slots, talk
from tests.runtime.oracle import Job, make_base, oracle_logits, prompts

DEVICE, DTYPE = "cuda", "bfloat16"
OPTIONS: dict[str, Any] = {}
SIZES = DeviceSizes(kv_bytes=1 << 28, block_tokens=16, adapter_rows=512, max_slots=32, max_rows=32)
CONFIG: dict[str, Any] = {
    "model_type": "llama", "vocab_size": 32000, "hidden_size": 2048, "intermediate_size": 5504, "num_hidden_layers": 4,
    "num_attention_heads": 16, "num_key_value_heads": 4, "max_position_embeddings": 4096, "tie_word_embeddings": False,
}  # fmt: skip
RANKS = (8, 16, 64, 5)
LENGTH, STEPS, ROWS, LOADS, STRIDE = 300, 12, 14, 6, 3
# Rows and tiles are rounded up, so that few graphs serve all.
SLOTS = [[-1, 0, 1, 2], [-1, 3, 1, 0], [0, 1, 2], [2, 3, 0], [-1, -1, 1, 1], [-1, -1, -1, 3], [1, -1, -1]]


def _runner(**options: Any) -> DeviceRunner:
    config = ModelConfig.from_config(CONFIG, {})
    return DeviceRunner.random(config, SIZES, device=DEVICE, dtype=DTYPE, seed=1, **{**OPTIONS, **options})


def _with_adapters(runner: DeviceRunner) -> DeviceRunner:
    offset = 0
    for slot, rank in enumerate(RANKS):
        runner.put_random_adapter(slot, offset, rank, seed=slot)
        offset += rank
    return runner


def _file(geometry: Geometry, rank: int, seed: int) -> Packed:
    rng = np.random.default_rng(seed)
    matrices = []
    for layer in range(geometry.num_layers):
        for module in MODULES:
            outs, ins = geometry.shape(module)
            a = rng.standard_normal((rank, ins), np.float32) * ins**-0.5
            b = rng.standard_normal((outs, rank), np.float32) * 0.3 * rank**-0.5
            matrices.append(LoraMatrices(layer, module, 1.0, a, b))
    out = io.BytesIO()
    write_packed(out, geometry, "float32", matrices)
    return read_packed(out.getvalue())


def test_graphs_give_the_bits_of_eager_steps() -> None:
    """Twice each: the second time everything is replayed."""
    graphs, eager = _with_adapters(_runner()), _with_adapters(_runner(capture=again))
    for slots in (mixed_slots(range(len(RANKS)), ROWS), [BASE_SLOT] * 3):
        assert_same(graphs, eager, slots, LENGTH, STEPS, SIZES.block_tokens)
        assert_same(graphs, eager, slots, LENGTH, STEPS, SIZES.block_tokens)
    report = graphs.graphs.report
    assert report.captures == 2
    assert report.replays > report.eager == 2


def test_a_graph_serves_fewer_and_more_rows_and_adapters_than_it_was_captured_with() -> None:
    graphs, eager = _with_adapters(_runner()), _with_adapters(_runner(capture=again))
    for slots in SLOTS:
        assert_same(graphs, eager, slots, LENGTH, 3, SIZES.block_tokens)


def test_a_slot_is_used_again_by_a_smaller_rank() -> None:
    used, fresh = _with_adapters(_runner()), _with_adapters(_runner())
    assert_same(used, fresh, [2, 2, -1], LENGTH, 3, SIZES.block_tokens)
    offset = sum(RANKS[:2])
    for runner in (used, fresh):
        runner.release_slot(2)
    fresh.release_slot(1)
    fresh.put_random_adapter(1, offset + 8, RANKS[1], seed=9)  # other numbers in the rows that are free now
    for runner in (used, fresh):
        runner.put_random_adapter(2, offset, 4, seed=7)
    assert_same(used, fresh, [2, 2, -1], LENGTH, 3, SIZES.block_tokens)


def test_a_host_that_is_one_step_behind_hears_the_same_tokens() -> None:
    runner = _with_adapters(_runner())
    slots = mixed_slots(range(len(RANKS)), ROWS)
    plain, ahead = (jobs_for(runner, slots, LENGTH, STEPS, SIZES.block_tokens) for _ in range(2))
    talk(runner, plain, ahead=False)
    talk(runner, ahead, ahead=True)
    assert [job.answer for job in ahead] == [job.answer for job in plain]


def test_adapters_that_come_meanwhile_change_no_token_and_are_whole() -> None:
    runner = _with_adapters(_runner())
    slots = mixed_slots(range(len(RANKS)), ROWS)
    plain, loading = (jobs_for(runner, slots, LENGTH, STEPS, SIZES.block_tokens) for _ in range(2))
    talk(runner, plain, ahead=True)
    files = [_file(runner.geometry, (16, 3)[index % 2], index) for index in range(LOADS)]
    first, arrived = len(RANKS), set[int]()

    def between(step: int) -> None:
        for index, file in enumerate(files):
            if index == step:
                runner.begin_adapter(first + index, sum(RANKS) + 16 * index, file)
            if index <= step and index not in arrived and runner.poll_adapter(first + index):
                arrived.add(index)

    talk(runner, loading, ahead=True, between=between)
    assert [job.answer for job in loading] == [job.answer for job in plain]
    for _ in range(LOADS):  # some may not even have begun
        runner.synchronize()
        between(LOADS)
    assert arrived == set(range(LOADS))
    other = _with_adapters(_runner())
    for index, file in enumerate(files):
        other.write_adapter(first + index, sum(RANKS) + 16 * index, file, 0, runner.geometry.num_layers)
    assert_same(runner, other, [first, first + LOADS - 1], LENGTH, 3, SIZES.block_tokens)


def test_launching_a_step_waits_for_nothing() -> None:
    runner = _with_adapters(_runner())
    slots = mixed_slots(range(len(RANKS)), ROWS)
    talk(runner, jobs_for(runner, slots, LENGTH, 4, SIZES.block_tokens), ahead=True)  # compiled and captured
    jobs = jobs_for(runner, slots, LENGTH, 4, SIZES.block_tokens)
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        talk(runner, jobs, ahead=True)
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_an_engine_answers_as_transformers_does(tmp_path: Path) -> None:
    model = make_base("llama-gqa", tmp_path)
    sizes = SIZES._replace(kv_bytes=1 << 22, max_rows=8)
    runner = DeviceRunner.load(tmp_path, sizes, device=DEVICE, dtype="float32", **OPTIONS)
    info = ModelInfo("tiny", "float32", DEVICE, runner.num_parameters, runner.vocab_size, 256, 64, ())
    limits = EngineLimits(runner.num_blocks, sizes.block_tokens, sizes.adapter_rows, max_running=8)
    loads = _Loads()
    engine = Engine(runner, info, limits, loads, lambda: 0.0)  # interpreted, it may take long: no deadline passes
    texts = prompts(runner.vocab_size, (3, 20, 9))
    jobs = [Job(text, num_tokens=STEPS) for text in texts]
    for index, job in enumerate(jobs):
        sampling = SamplingParams(max_tokens=STEPS, temperature=0.0)
        engine.submit(1, Submit(index, "a", tuple(job.prompt), sampling))
    # Drawn, and with an adapter: only that it comes to its end beside them.
    adapter = AdapterRef("digest", "key", 1, 8, "id")
    hot = SamplingParams(max_tokens=STEPS, temperature=DRAWN.temperature, top_p=0.9, seed=3)
    engine.submit(1, Submit(9, "b", (5, 6, 7), hot, adapter))
    file, said = _file(runner.geometry, 8, 3), dict[int, list[int]]()
    while engine.num_live:
        for ref in loads.asked:
            engine.adapter_loaded(ref.digest, file, Way())
        loads.asked.clear()
        for item in engine.step().outputs:
            assert item.output.failure is None, item.output.failure
            said.setdefault(item.output.sequence_id, []).extend(item.output.token_ids)
    for index, job in enumerate(jobs):
        job.answer = said[index]
        assert oracle_logits(model, job).argmax(-1).tolist() == job.answer
    assert len(said[9]) == STEPS
    assert runner.graphs.report.eager > 0
    assert runner.graphs.report.replays > 0 or STEPS < 6


class _Loads:
    """Everything is in memory."""

    def __init__(self) -> None:
        self.asked: list[AdapterRef] = []

    def start(self, adapter: AdapterRef) -> None:
        self.asked.append(adapter)

    def stop(self, digest: str) -> None:
        pass

    def warm(self, adapter: AdapterRef) -> None:
        pass

    def release(self, digest: str) -> None:
        pass

    def forget(self, digest: str) -> None:
        pass


@pytest.mark.parametrize("rank", [1, 64])
def test_every_number_of_rows_up_to_the_largest_bucket(rank: int) -> None:
    """Padding rows write nothing and say nothing."""
    graphs, eager = _runner(), _runner(capture=again)
    for runner in (graphs, eager):
        runner.put_random_adapter(0, 0, rank, seed=0)
    for rows in range(1, ROWS, STRIDE):
        assert_same(graphs, eager, [(-1, 0)[index % 2] for index in range(rows)], LENGTH, 2, SIZES.block_tokens)
