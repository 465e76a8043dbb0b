"""Adapters in a mixed batch give the logits and tokens of PEFT, and never reach another sequence's rows."""

import io
from pathlib import Path

import numpy as np
import pytest
from peft import LoraConfig, PeftModel

from kernels.cpu import compiling
from runtime.batch import BASE_SLOT, Batch
from runtime.errors import AdapterInvalid, LogitsInvalid, RunnerMisused
from runtime.runner import TorchRunner
from storage.geometry import MODULES
from storage.packed import LoraMatrices, Packed, read_packed, write_packed
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

# transformers warns of a name of its own that PEFT still uses.
pytestmark = pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing.*:FutureWarning")

ALL = list(MODULES)
ADAPTERS = {
    "tiny": LoraConfig(r=1, lora_alpha=4, target_modules=["q_proj", "v_proj"], init_lora_weights=False),
    "wide": LoraConfig(r=16, lora_alpha=4, target_modules=ALL, use_rslora=True, init_lora_weights=False),
    "mlp": LoraConfig(r=5, lora_alpha=3, target_modules=["gate_proj", "down_proj"], init_lora_weights=False),
    "patterns": LoraConfig(
        r=4,
        lora_alpha=2,
        target_modules=ALL,
        rank_pattern={"k_proj": 9, "layers.1.self_attn.o_proj": 2, "up_proj": 1},
        alpha_pattern={"down_proj": 7, "layers.0.self_attn.q_proj": 1},
        init_lora_weights=False,
    ),
    "some layers": LoraConfig(
        r=3, lora_alpha=3, target_modules=["o_proj", "up_proj"], layers_to_transform=[1], init_lora_weights=False
    ),
}
# name -> (slot, row offset): neither in order nor dense
PLACES = {"tiny": (5, 90), "wide": (0, 40), "mlp": (7, 3), "patterns": (2, 20), "some layers": (3, 0)}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("base")


@pytest.fixture(scope="module")
def peft_model(folder: Path) -> PeftModel:
    return add_adapters(make_base("llama-gqa", folder), ADAPTERS)


@pytest.fixture(params=["numba", "torch"])
def runner(
    folder: Path, peft_model: PeftModel, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> TorchRunner:
    monkeypatch.setattr(compiling, "available", request.param == "numba")
    runner = load_runner(folder)
    for name, (slot, offset) in PLACES.items():
        load(runner, slot, offset, packed_adapter(peft_model, name, runner.geometry), step=2)
    return runner


def load(runner: TorchRunner, slot: int, offset: int, packed: Packed, step: int = 3) -> None:
    for first in range(0, runner.geometry.num_layers, step):
        runner.write_adapter(slot, offset, packed, first, min(step, runner.geometry.num_layers - first))


def check(peft_model: PeftModel, name: str | None, job: Job) -> None:
    if name is None:
        with peft_model.disable_adapter():
            assert_agrees(peft_model, job)
    else:
        peft_model.set_adapter(name)
        assert_agrees(peft_model, job)


@pytest.mark.parametrize("chunk", [0, 11])
def test_a_mixed_batch_equals_peft(chunk: int, runner: TorchRunner, peft_model: PeftModel) -> None:
    names = [None, "tiny", "wide", "mlp", "patterns", "some layers", None, "wide", "patterns"]
    texts = prompts(runner.vocab_size, range(4, 4 + 5 * len(names), 5))
    jobs = [
        Job(text, slot=PLACES[name][0] if name else BASE_SLOT, chunk=chunk, arrives=i % 4, num_tokens=20)
        for i, (name, text) in enumerate(zip(names, texts, strict=True))
    ]
    decode(runner, jobs, block_tokens=16, order=4)
    for name, job in zip(names, jobs, strict=True):
        check(peft_model, name, job)


@pytest.mark.parametrize(
    "name",
    [
        "gemma-mqa",
        "gemma2-gqa",
        "gemma3-gqa",
        "mistral-window",
        "llama-mqa-tied",
        "llama-biases",
        "qwen2-window-tied",
        "qwen3-gqa",
    ],
)
def test_adapters_on_the_other_families_equal_peft(name: str, tmp_path: Path) -> None:
    peft_model = add_adapters(make_base(name, tmp_path), ADAPTERS)
    runner = load_runner(tmp_path)
    jobs = {}
    for i, (adapter, (slot, offset)) in enumerate(PLACES.items()):
        load(runner, slot, offset, packed_adapter(peft_model, adapter, runner.geometry))
        jobs[adapter] = Job(prompts(runner.vocab_size, (9 + 6 * i,))[0], slot=slot)
    decode(runner, list(jobs.values()), block_tokens=16)
    for adapter, job in jobs.items():
        check(peft_model, adapter, job)


def test_batch_mates_change_no_token_of_an_adapter(runner: TorchRunner) -> None:
    slots = [slot for slot, _ in PLACES.values()] + [BASE_SLOT, BASE_SLOT]
    text = prompts(runner.vocab_size, (12,))[0]
    expected = [decode(runner, [Job(text, slot=slot)], block_tokens=16)[0] for slot in slots]
    jobs = [Job(text, slot=slot, arrives=i) for i, slot in enumerate(slots)]
    assert decode(runner, jobs, block_tokens=16, order=2) == expected
    assert len({tuple(answer) for answer in expected}) == len(PLACES) + 1


def test_bfloat16_and_float16_files_are_converted(folder: Path, peft_model: PeftModel) -> None:
    runner = load_runner(folder)
    job_answers = []
    for slot, dtype in enumerate(("float32", "bfloat16")):
        load(runner, slot, slot * 16, packed_adapter(peft_model, "wide", runner.geometry, dtype))  # type: ignore[arg-type]
        job = Job(prompts(runner.vocab_size, (9,))[0], slot=slot, num_tokens=1)
        decode(runner, [job], block_tokens=16)
        job_answers.append(job.logits[0])
    exact, rounded = job_answers
    error = float((exact - rounded).norm() / exact.norm())
    assert 0 < error < 0.05


def test_a_replaced_adapter_leaves_nothing_behind(runner: TorchRunner, peft_model: PeftModel) -> None:
    """A small adapter in the rows and slot of a large one, while stacks of the old one are still cached."""
    slot, offset = PLACES["wide"]
    text = prompts(runner.vocab_size, (10,))[0]
    first = Job(text, slot=slot)
    decode(runner, [first], block_tokens=16)
    check(peft_model, "wide", first)
    runner.release_slot(slot)
    for name in ("mlp", "tiny"):
        load(runner, slot, offset, packed_adapter(peft_model, name, runner.geometry))
        job = Job(text, slot=slot)
        decode(runner, [job], block_tokens=16)
        check(peft_model, name, job)


def test_rows_that_overflowed_are_clean_for_their_next_owner(runner: TorchRunner, peft_model: PeftModel) -> None:
    """The next owner has fewer modules and smaller ranks, so most of its rows are written only by being zeroed."""
    slot, offset = PLACES["patterns"]
    load(runner, slot, offset, packed_adapter(peft_model, "wide", runner.geometry, huge=True))
    for name in ("patterns", "tiny"):
        load(runner, slot, offset, packed_adapter(peft_model, name, runner.geometry))
        job = Job(prompts(runner.vocab_size, (10,))[0], slot=slot, num_tokens=4)
        decode(runner, [job], block_tokens=16)
        check(peft_model, name, job)


def test_an_adapter_that_overflows_breaks_only_its_own_sequences(runner: TorchRunner, peft_model: PeftModel) -> None:
    slot, offset = PLACES["mlp"]
    load(runner, slot, offset, packed_adapter(peft_model, "wide", runner.geometry, huge=True))
    texts = prompts(runner.vocab_size, (20, 20, 20))
    hostile = Job(texts[0], slot=slot, blocks=[0, 1])
    base, wide = Job(texts[1], blocks=[2, 3]), Job(texts[2], slot=PLACES["wide"][0], blocks=[4, 5])
    rows = (base.next_row(11), wide.next_row(12), hostile.next_row(13))
    with pytest.raises(LogitsInvalid) as caught:
        runner.execute(Batch(rows))
    assert caught.value.sequence_ids == (13,)
    assert runner.execute(Batch(rows[:2])) == [
        *decode(runner, [Job(texts[1], num_tokens=1)], block_tokens=16)[0],
        *decode(runner, [Job(texts[2], num_tokens=1, slot=PLACES["wide"][0])], block_tokens=16)[0],
    ]


def test_a_block_full_of_infinities_is_clean_for_its_next_owner(runner: TorchRunner, peft_model: PeftModel) -> None:
    slot, offset = PLACES["mlp"]
    load(runner, slot, offset, packed_adapter(peft_model, "wide", runner.geometry, huge=True))
    text = prompts(runner.vocab_size, (32,))[0]
    with pytest.raises(LogitsInvalid):
        runner.execute(Batch((Job(text, slot=slot, blocks=[0, 1]).next_row(1),)))
    for chunk in (0, 3, 1):
        job = Job(text[:5], chunk=chunk, blocks=[0, 1])
        decode(runner, [job], block_tokens=16)
        check(peft_model, None, job)


def test_weights_that_are_not_finite_are_refused(runner: TorchRunner) -> None:
    out = io.BytesIO()
    a, b = np.ones((2, 54), np.float32), np.ones((60, 2), np.float32)
    b[7, 1] = np.inf
    write_packed(out, runner.geometry, "float32", [LoraMatrices(0, "q_proj", 1.0, a, b)])
    with pytest.raises(AdapterInvalid, match="finite"):
        load(runner, 5, 0, read_packed(out.getvalue()))
    with pytest.raises(RunnerMisused, match="slot 5"):
        runner.execute(Batch((Job([1, 2], slot=5, blocks=[0]).next_row(1),)))
    scaled = io.BytesIO()
    write_packed(scaled, runner.geometry, "float32", [LoraMatrices(0, "q_proj", 1e39, a, np.ones_like(b))])
    with pytest.raises(AdapterInvalid, match="finite"):
        load(runner, 5, 0, read_packed(scaled.getvalue()))


def test_an_adapter_of_another_base_is_refused(runner: TorchRunner, tmp_path: Path) -> None:
    other = add_adapters(make_base("llama-heads", tmp_path), {"tiny": ADAPTERS["tiny"]})
    packed = packed_adapter(other, "tiny", load_runner(tmp_path).geometry)
    with pytest.raises(AdapterInvalid, match="this base"):
        runner.write_adapter(1, 0, packed, 0, 3)


def test_slots_are_used_only_when_complete(runner: TorchRunner, peft_model: PeftModel) -> None:
    packed = packed_adapter(peft_model, "tiny", runner.geometry)
    row = Job([1, 2, 3], slot=1, blocks=[0]).next_row(1)
    for action in (
        lambda: runner.write_adapter(1, 0, packed, 1, 1),
        lambda: runner.write_adapter(8, 0, packed, 0, 1),
        lambda: runner.write_adapter(1, 128, packed, 0, 1),
        lambda: runner.write_adapter(1, 0, packed, 0, 4),
        lambda: runner.execute(Batch((row,))),
    ):
        with pytest.raises(RunnerMisused):
            action()
    runner.write_adapter(1, 0, packed, 0, 2)
    with pytest.raises(RunnerMisused, match="slot 1"):
        runner.execute(Batch((row,)))
    runner.write_adapter(1, 0, packed, 2, 1)
    assert len(runner.execute(Batch((row,)))) == 1
    runner.release_slot(1)
    with pytest.raises(RunnerMisused, match="slot 1"):
        runner.execute(Batch((row,)))
