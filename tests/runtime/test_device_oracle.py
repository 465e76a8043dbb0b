"""The device's decoder gives the logits and greedy tokens of transformers and PEFT: kernels interpreted, decode steps
replayed from recordings that stand for graphs."""

import logging
from collections.abc import Iterator
from contextlib import ExitStack
from itertools import pairwise
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import torch
from peft import LoraConfig, PeftModel
from transformers import LlamaConfig

from kernels import lora_expand, lora_shrink
from runtime.batch import PENDING, Batch, Scored
from runtime.device_runner import DeviceRunner, row_buckets
from runtime.engine import Engine, EngineLimits
from runtime.errors import AdapterInvalid, ConfigInvalid, LogitsInvalid, RunnerMisused
from runtime.layers.kv_cache import KVCache
from runtime.models.config import ModelConfig
from runtime.process import _load_on_card
from runtime.protocol import ModelInfo, SamplingParams
from storage.geometry import MODULES
from tests.runtime.bases import CONFIGS
from tests.runtime.device_rig import SIZES, device_runner, interpreted
from tests.runtime.fakes import FakeLoads
from tests.runtime.oracle import (
    Job,
    add_adapters,
    assert_agrees,
    decode,
    load_runner,
    make_base,
    packed_adapter,
    prompts,
)
from tests.runtime.rows import changed

# transformers warns of a name of its own that PEFT still uses.
pytestmark = [
    pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing.*:FutureWarning"),
    pytest.mark.timeout(600),  # interpreted kernels: seconds of computing, which a busy machine makes minutes of
]

# Between them: grouped queries, windows, caps, norms of outputs and of heads, biases, tied and scaled embeddings, two
# rotations, one window of a single position.
FAMILIES = ["llama-gqa", "mistral-window", "gemma2-gqa", "gemma3-mqa", "qwen2-window-tied", "qwen3-mqa-biases"]


@pytest.fixture(autouse=True)
def device_path() -> Iterator[None]:
    with interpreted():
        yield


@pytest.mark.parametrize("name", FAMILIES)
def test_prefill_and_decode_equal_transformers(name: str, tmp_path: Path) -> None:
    model = make_base(name, tmp_path)
    runner = device_runner(tmp_path)
    jobs = [Job(prompt, num_tokens=3) for prompt in prompts(runner.vocab_size, (1, 24))]  # the windows are 19
    decode(runner, jobs, block_tokens=16)
    for job in jobs:
        assert_agrees(model, job)
    assert runner.num_parameters == sum(p.numel() for p in model.parameters())
    assert runner.graphs.report.replays > 0


def test_chunks_beside_decodes_and_odd_blocks_change_nothing(tmp_path: Path) -> None:
    model = make_base("gemma2-gqa", tmp_path)
    runner = device_runner(tmp_path, SIZES._replace(block_tokens=7))
    texts = prompts(runner.vocab_size, (30, 2, 9))
    jobs = [Job(text, num_tokens=4, chunk=11, arrives=index) for index, text in enumerate(texts)]
    decode(runner, jobs, block_tokens=7, preempt_at=(3,))
    for job in jobs:
        assert_agrees(model, job)


ADAPTERS = {
    "tiny": LoraConfig(r=1, lora_alpha=4, target_modules=["q_proj", "v_proj"], init_lora_weights=False),
    "wide": LoraConfig(r=16, lora_alpha=4, target_modules=list(MODULES), use_rslora=True, init_lora_weights=False),
    "patterns": LoraConfig(
        r=4,
        lora_alpha=2,
        target_modules=list(MODULES),
        rank_pattern={"k_proj": 9, "layers.1.self_attn.o_proj": 2, "up_proj": 1},
        alpha_pattern={"down_proj": 7, "layers.0.self_attn.q_proj": 1},
        init_lora_weights=False,
    ),
    "some layers": LoraConfig(
        r=3, lora_alpha=3, target_modules=["o_proj", "up_proj"], layers_to_transform=[1], init_lora_weights=False
    ),
}
# name -> (slot, row offset): neither in order nor dense
PLACES = {"tiny": (5, 90), "wide": (0, 40), "patterns": (2, 20), "some layers": (3, 0)}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("base")


@pytest.fixture(scope="module")
def peft_model(folder: Path) -> PeftModel:
    with patch.dict(CONFIGS, short=lambda: LlamaConfig(**{**CONFIGS["llama-gqa"]().to_dict(), "num_hidden_layers": 2})):
        return add_adapters(make_base("short", folder), ADAPTERS)


@pytest.fixture(scope="module")
def runner(folder: Path, peft_model: PeftModel) -> DeviceRunner:
    """With all adapters in their places: whoever takes one out puts it back."""
    with interpreted():
        return runner_with_all(folder, peft_model)


def runner_with_all(folder: Path, peft_model: PeftModel) -> DeviceRunner:
    runner = device_runner(folder)
    for name, (slot, offset) in PLACES.items():
        packed = packed_adapter(peft_model, name, runner.geometry)
        runner.write_adapter(slot, offset, packed, 0, runner.geometry.num_layers)
    return runner


def _put(runner: DeviceRunner, peft_model: PeftModel, name: str, slot: int, offset: int) -> None:
    """In the place of what is there."""
    runner.release_slot(slot)
    packed = packed_adapter(peft_model, name, runner.geometry)
    runner.write_adapter(slot, offset, packed, 0, runner.geometry.num_layers)


def _check(peft_model: PeftModel, jobs: dict[str, Job]) -> None:
    for name, job in jobs.items():
        if name.startswith("base"):
            with peft_model.disable_adapter():
                assert_agrees(peft_model, job)
        else:
            peft_model.set_adapter(name)
            assert_agrees(peft_model, job)


def test_a_mixed_batch_equals_peft(runner: DeviceRunner, peft_model: PeftModel) -> None:
    texts = prompts(runner.vocab_size, (5, 18, 1, 6, 20))
    jobs = {name: Job(texts[i], slot=PLACES[name][0], num_tokens=3, arrives=i // 2) for i, name in enumerate(ADAPTERS)}
    jobs["base"] = Job(texts[4], num_tokens=3)
    decode(runner, list(jobs.values()), block_tokens=16)
    _check(peft_model, jobs)


def test_one_adapter_with_many_rows_equals_peft(runner: DeviceRunner, peft_model: PeftModel) -> None:
    """Tiles of sixteen in a decode step."""
    texts = prompts(runner.vocab_size, (3, 2, 4, 1, 2))
    jobs = [Job(text, slot=PLACES["patterns"][0], num_tokens=2) for text in texts]
    decode(runner, jobs, block_tokens=16)
    for job in jobs:
        _check(peft_model, {"patterns": job})


def test_a_smaller_adapter_in_the_rows_of_a_larger_one_equals_peft(runner: DeviceRunner, peft_model: PeftModel) -> None:
    _put(runner, peft_model, "some layers", *PLACES["wide"])
    slot = PLACES["wide"][0]
    job = Job(prompts(runner.vocab_size, (7,))[0], slot=slot, num_tokens=3)
    decode(runner, [job], block_tokens=16)
    _put(runner, peft_model, "wide", *PLACES["wide"])
    _check(peft_model, {"some layers": job})


def test_an_adapter_that_is_not_finite_never_becomes_ready(runner: DeviceRunner, peft_model: PeftModel) -> None:
    packed = packed_adapter(peft_model, "tiny", runner.geometry)
    broken = bytearray(packed.payload)
    broken[:4] = b"\x00\x00\x80\x7f"  # infinity
    runner.release_slot(5)
    with pytest.raises(AdapterInvalid, match="not finite"):
        runner.write_adapter(5, 90, packed._replace(payload=memoryview(broken)), 0, runner.geometry.num_layers)
    with pytest.raises(RunnerMisused, match="no complete adapter"):
        runner.execute(Batch((Job([1, 2], slot=5, blocks=[0]).next_row(1),)))
    _put(runner, peft_model, "tiny", *PLACES["tiny"])


@pytest.mark.filterwarnings("ignore:overflow encountered:RuntimeWarning", "ignore:invalid value:RuntimeWarning")
def test_rows_whose_numbers_overflow_are_named_and_the_others_are_right(
    runner: DeviceRunner, peft_model: PeftModel
) -> None:
    runner.release_slot(5)
    packed = packed_adapter(peft_model, "tiny", runner.geometry, huge=True)
    runner.write_adapter(5, 90, packed, 0, runner.geometry.num_layers)
    rows = (Job([1, 2], blocks=[0]).next_row(1), Job([1, 2], slot=5, blocks=[1]).next_row(2))
    flight = runner.launch(Batch(rows))
    alone = runner.execute(Batch(rows[:1]))
    assert runner.finish(flight) == [*alone, None]
    with pytest.raises(LogitsInvalid) as error:
        runner.execute(Batch(rows))
    assert error.value.sequence_ids == (2,)
    _put(runner, peft_model, "tiny", *PLACES["tiny"])


def test_penalties_biases_and_scores_are_those_of_the_cpu(runner: DeviceRunner, folder: Path) -> None:
    wanted = SamplingParams(
        temperature=0.0,
        repetition_penalty=1.3,
        frequency_penalty=0.4,
        logit_bias=((3, 60.0), (9, 59.0)),
        top_logprobs=4,
    )
    plain = SamplingParams(temperature=0.0, top_logprobs=2)
    texts = prompts(runner.vocab_size, (3, 1, 5))
    jobs = [Job(texts[0], sampling=wanted), Job(texts[1]), Job(texts[2], sampling=plain)]
    rows = []
    for index, job in enumerate(jobs):
        job.blocks = [index]
        rows.append(job.next_row(index))
    found, expected = runner.execute(Batch(tuple(rows))), load_runner(folder).execute(Batch(tuple(rows)))
    for one, other in zip(found, expected, strict=True):
        if isinstance(other, int):
            assert one == other
            continue
        assert isinstance(one, Scored)
        assert one.token_id == other.token_id
        assert [word for word, _ in one.score.top] == [word for word, _ in other.score.top]
        assert abs(one.score.logprob - other.score.logprob) < 1e-3


def test_draws_depend_on_seed_and_position_only(runner: DeviceRunner) -> None:
    hot = SamplingParams(temperature=1.5, top_p=0.95)
    text = prompts(runner.vocab_size, (6,))[0]
    alone = Job(text, num_tokens=5, sampling=hot, seed=11)
    decode(runner, [alone], block_tokens=16)
    jobs = [Job(text, num_tokens=5, sampling=hot, seed=seed, arrives=seed % 3) for seed in (12, 11, 13)]
    decode(runner, jobs, block_tokens=16, order=3)
    assert jobs[1].answer == alone.answer
    assert len({tuple(job.answer) for job in jobs}) == 3


def test_a_step_ahead_of_the_host_gives_the_same_tokens(runner: DeviceRunner, peft_model: PeftModel) -> None:
    """Launch a step that goes on from tokens nobody has read, then read them."""
    texts = prompts(runner.vocab_size, (4, 9))
    wanted = [Job(text, slot=slot, num_tokens=5) for text, slot in zip(texts, (-1, 0), strict=True)]
    decode(runner, wanted, block_tokens=16)
    jobs = [Job(text, slot=slot, blocks=[index]) for index, (text, slot) in enumerate(zip(texts, (-1, 0), strict=True))]
    flight = runner.launch(Batch(tuple(job.next_row(index) for index, job in enumerate(jobs))))
    for _ in range(4):
        rows = []
        for index, job in enumerate(jobs):
            history = [*job.prompt, *job.answer, PENDING]
            job.computed = len(history) - 1
            row = job.next_row(index)
            rows.append(changed(row, token_ids=[PENDING], start=job.computed, samples=True, history=history))
        ahead = runner.launch(Batch(tuple(rows)))
        for job, token in zip(jobs, runner.finish(flight), strict=True):
            assert isinstance(token, int)
            job.answer.append(token)
        flight = ahead
    for job, token in zip(jobs, runner.finish(flight), strict=True):
        assert isinstance(token, int)
        job.answer.append(token)
    assert [job.answer for job in jobs] == [job.answer for job in wanted]
    stranger = changed(rows[0], sequence_id=77)
    with pytest.raises(RunnerMisused, match="77"):
        runner.launch(Batch((stranger,)))


def test_random_models_and_adapters_for_benches(tmp_path: Path) -> None:
    make_base("qwen3-gqa", tmp_path)
    config = ModelConfig.from_folder(tmp_path)
    made = DeviceRunner.random(config, SIZES, device="cpu", dtype="float32", seed=3)
    made.put_random_adapter(2, 16, 8, seed=4)
    job = Job([5, 6, 7], blocks=[0])
    base, adapted = made.logits(Batch((job.next_row(1),))), made.logits(Batch((changed(job.next_row(1), slot=2),)))
    assert torch.isfinite(adapted).all()
    assert not torch.allclose(base, adapted, atol=1e-3)


class _Noting:
    """A kernel that writes down which specialisations are launched."""

    def __init__(self, kernel: Any, noted: set[tuple[str, Any]]) -> None:
        self._kernel, self._noted = kernel, noted

    def __getitem__(self, grid: Any) -> Any:
        def launch(*arguments: Any, **named: Any) -> None:
            constants = {name: value for name, value in named.items() if name.isupper() or name.startswith("num_")}
            self._noted.add((self._kernel.__name__, tuple(sorted(constants.items()))))
            self._kernel[grid](*arguments, **named)

        return launch


def test_a_warm_runner_captures_and_compiles_nothing_new(tmp_path: Path) -> None:
    with patch.dict(CONFIGS, flat=lambda: LlamaConfig(**{**CONFIGS["llama-gqa"]().to_dict(), "num_hidden_layers": 1})):
        model = make_base("flat", tmp_path)
    runner = device_runner(tmp_path, SIZES._replace(max_rows=2))
    compiled = set[tuple[str, Any]]()
    launches = [
        patch.object(module, name, _Noting(getattr(module, name), compiled))
        for module, name in (
            (lora_shrink, "_shrink_rows_kernel"), (lora_shrink, "_shrink_tiles_kernel"),
            (lora_expand, "_expand_rows_kernel"), (lora_expand, "_expand_tiles_kernel"),
        )
    ]  # fmt: skip
    with ExitStack() as noting:
        for launch in launches:
            noting.enter_context(launch)
        with patch("runtime.device_runner._WARM_CHUNKS", (8,)):
            steps = runner.warm_up()
        known = set(compiled)
        # Adapters of one row each beside a prompt, whole prompts of an adapter, decode steps.
        for slot in (0, 1):
            runner.put_random_adapter(slot, slot, 1, seed=slot)
        prompt, one, other = (Job([1] * size, slot=slot, blocks=[slot + 1]).next_row(slot + 2)
                              for size, slot in ((5, -1), (1, 0), (1, 1)))  # fmt: skip
        for rows in ((prompt, one), (one, other), (one,), (changed(prompt, slot=0),)):
            runner.execute(Batch(tuple(rows)))
        for slot in (0, 1):
            runner.release_slot(slot)
    assert known
    assert compiled == known
    warm = runner.graphs.report
    assert warm.captures == 4, "one row and two, of the base and with adapters, whose two kinds are one shape here"
    assert steps == 2 + 2 * 4 + 1
    jobs = [Job(text, num_tokens=3) for text in prompts(runner.vocab_size, (5, 2))]
    decode(runner, jobs, block_tokens=16)
    for job in jobs:
        assert_agrees(model, job)
    assert runner.graphs.report.captures == warm.captures
    with pytest.raises(RunnerMisused, match="slot 0"):
        runner.execute(Batch((Job([1, 2], slot=0, blocks=[0]).next_row(1),)))


def test_a_process_serves_with_a_warm_runner_and_says_how_long_it_took(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    make_base("llama-heads", tmp_path)
    progress: list[float] = []
    caplog.set_level(logging.INFO, logger="runtime.process")
    with patch("runtime.device_runner._WARM_CHUNKS", (2,)):
        runner = _load_on_card(tmp_path, SIZES._replace(max_rows=1), "cpu", "float32", progress.append)
    assert progress[-1] == 1.0
    assert runner.graphs.report.captures > 0
    assert "steps to warm up in" in caplog.text
    assert "captures=" in caplog.text
    # And so says the engine, to whoever asks the runtime how it is.
    info = ModelInfo("tiny", "float32", "cpu", runner.num_parameters, runner.vocab_size, 256, 64, ())
    limits = EngineLimits(runner.num_blocks, SIZES.block_tokens, SIZES.adapter_rows)
    told, report = Engine(runner, info, limits, FakeLoads(), lambda: 0.0).stats(), runner.graphs.report
    assert (told.graph_captures, told.graph_capture_s, told.graphs_failed) == (report.captures, report.capture_s, 0)
    assert told.graph_capture_s > 0


@pytest.mark.parametrize("part", ["KVCache", "AdapterPool", "load_decoder", "AdapterCopies"])
def test_a_model_that_does_not_fit_is_refused_with_every_part(
    part: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_base("llama-gqa", tmp_path)

    def full(*arguments: object, **options: object) -> None:
        raise torch.OutOfMemoryError("no")

    if part == "KVCache":
        full.block_bytes = KVCache.block_bytes  # type: ignore[attr-defined]
    monkeypatch.setattr(f"runtime.device_runner.{part}", full)
    with pytest.raises(ConfigInvalid, match=r"weights .*adapter pool .*staging of adapters .*keys and values 1 MiB"):
        device_runner(tmp_path)


def test_sizes_that_cannot_be_are_refused(tmp_path: Path) -> None:
    make_base("llama-gqa", tmp_path)
    with pytest.raises(ConfigInvalid, match="one block takes"):
        device_runner(tmp_path, SIZES._replace(kv_bytes=100))
    with pytest.raises(ConfigInvalid, match="at least 1"):
        device_runner(tmp_path, SIZES._replace(max_rows=0))


def test_rows_of_decode_steps_are_rounded_up_a_little() -> None:
    assert row_buckets(64) == [1, 2, 4, 8, 16, 24, 32, 48, 64]
    assert row_buckets(5) == [1, 2, 4, 5]
    assert row_buckets(1) == [1]
    assert max(b / a for a, b in pairwise(row_buckets(1024)[3:])) <= 2
