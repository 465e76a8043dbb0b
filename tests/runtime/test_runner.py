"""The runner's contract towards the engine: what it reports, what it refuses, and that steps can be repeated."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from runtime.batch import BASE_SLOT, Batch, Row, Runner
from runtime.errors import ConfigInvalid, ModelInvalid, RunnerMisused
from runtime.protocol import SamplingParams
from runtime.runner import TorchRunner
from tests.runtime.oracle import GREEDY, Job, decode, load_runner, make_base, prompts
from tests.runtime.rows import changed

OPTIONS: dict[str, Any] = {
    "device": "cpu",
    "dtype": "float32",
    "threads": 1,
    "kv_bytes": 2**20,
    "block_tokens": 16,
    "adapter_rows": 16,
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("base")
    make_base("llama-gqa", folder)
    return folder


def row(**changes: Any) -> Row:
    plain = Row(1, (3, 4, 5), 0, (2, 0), BASE_SLOT, True, GREEDY, (3, 4, 5), 3, 0)
    return changed(plain, **changes)


def test_it_says_what_it_holds(folder: Path) -> None:
    seen: list[float] = []
    runner: TorchRunner = TorchRunner.load(folder, **OPTIONS, progress=seen.append)
    engine_side: Runner = runner
    assert engine_side is runner
    block_bytes = 3 * 2 * 2 * 10 * 4 * 16
    assert runner.num_blocks == 2**20 // block_bytes
    assert (runner.vocab_size, runner.geometry.num_layers, runner.eos_token_ids) == (131, 3, (2,))
    assert runner.max_sequence_tokens == 256
    assert (seen == sorted(seen), seen[-1]) == (True, 1.0)


def test_a_small_cache_bounds_the_sequence(folder: Path) -> None:
    runner = TorchRunner.load(folder, **{**OPTIONS, "kv_bytes": 3 * 3 * 2 * 2 * 10 * 4 * 16})
    assert (runner.num_blocks, runner.max_sequence_tokens) == (3, 48)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"dtype": "int8"}, "dtype = 'int8'"),
        ({"device": "abacus"}, "device = 'abacus'"),
        ({"kv_bytes": 100}, "kv_bytes = 100"),
        ({"kv_bytes": 2**62}, "do not fit into the memory"),
        ({"block_tokens": 0}, "block_tokens"),
        ({"adapter_rows": 0}, "adapter_rows"),
    ],
)
def test_settings_that_cannot_be_are_refused(change: dict[str, Any], reason: str, folder: Path) -> None:
    with pytest.raises(ConfigInvalid, match=reason):
        TorchRunner.load(folder, **{**OPTIONS, **change})


def test_a_folder_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelInvalid, match="nowhere"):
        TorchRunner.load(tmp_path / "nowhere", **OPTIONS)


@pytest.mark.parametrize(
    "rows",
    [
        (),
        (row(token_ids=()),),
        (row(start=-1),),
        (row(start=254, block_table=tuple(range(17))),),
        (row(start=30),),
        (row(block_table=(2, -1)),),
        (row(block_table=(2, 10**6)),),
        (row(token_ids=(131,)),),
        (row(token_ids=(-1,)),),
        (row(slot=0),),
        (row(slot=0), row(slot=BASE_SLOT)),
    ],
)
def test_a_batch_that_cannot_be_is_refused_before_anything_is_written(rows: tuple[Row, ...], folder: Path) -> None:
    runner = load_runner(folder)
    expected = runner.logits(Batch((row(),)))
    with pytest.raises(RunnerMisused):
        runner.execute(Batch(rows))
    assert torch.equal(runner.logits(Batch((row(),))), expected)


def test_rows_that_do_not_sample_give_nothing(folder: Path) -> None:
    runner = load_runner(folder)
    assert runner.execute(Batch((row(samples=False),))) == []
    first, second = row(samples=False), row(sequence_id=2, block_table=(5,))
    assert runner.execute(Batch((first, second))) == runner.execute(Batch((second,)))


def test_sampled_text_is_the_same_alone_in_company_and_again(folder: Path) -> None:
    runner = load_runner(folder)
    sampling = SamplingParams(temperature=0.9, top_p=0.95, top_k=30, repetition_penalty=1.1)
    texts = prompts(runner.vocab_size, (9, 20, 3))

    def jobs() -> list[Job]:
        return [Job(text, sampling=sampling, seed=40 + i, chunk=i * 4) for i, text in enumerate(texts)]

    alone = [decode(runner, [job], block_tokens=16)[0] for job in jobs()]
    assert decode(runner, jobs(), block_tokens=16, order=3) == alone
    other_seed = decode(runner, [replace(jobs()[0], seed=99)], block_tokens=16)[0]
    assert other_seed != alone[0]


def test_a_preempted_sequence_goes_on_as_if_nothing_had_happened(folder: Path) -> None:
    """Preemption by recompute: prompt and answer so far come back as one prefill, in other blocks."""
    runner = load_runner(folder)
    text = prompts(runner.vocab_size, (12,))[0]
    sampling = SamplingParams(temperature=0.8)
    whole = decode(runner, [Job(text, sampling=sampling, seed=6, num_tokens=20)], block_tokens=16)[0]
    resumed = Job(text, sampling=sampling, seed=6, num_tokens=20, answer=whole[:8])
    assert decode(runner, [resumed], block_tokens=16, order=7)[0] == whole
