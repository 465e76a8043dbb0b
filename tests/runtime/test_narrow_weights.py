"""A base whose files are narrower than the runtime's type: its weights stay so, and every logit has the bits that
widened weights give, with cache, adapters and all else in fp32."""

import json
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, PreTrainedModel

from kernels.cpu import compiling
from runtime.batch import BASE_SLOT, Batch, Row
from runtime.model_size import ModelSize
from runtime.runner import TorchRunner
from tests.runtime.bases import CONFIGS
from tests.runtime.oracle import GREEDY, Job, assert_agrees, decode, load_runner, make_base, prompts
from tests.runtime.random_adapters import write_random_adapter
from tests.runtime.test_oracle_base import ONE_OF_EACH_FAMILY

BLOCK_TOKENS = 8
RANKS = {0: (0, 5), 1: (9, 16), 2: (40, 3)}  # slot -> (row offset, rank)
FIRST = ((BASE_SLOT, 100), (BASE_SLOT, 7), (0, 1), (1, 70), (2, 33))  # slot and tokens of each prompt


def both(folder: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[TorchRunner, TorchRunner]:
    """(with weights as `held_as` decides, with weights widened when they are loaded); the same adapters."""
    runners = [load_runner(folder, block_tokens=BLOCK_TOKENS, threads=2)]
    with monkeypatch.context() as patch:
        patch.setattr(ModelSize, "held_as", lambda _, dtype: dtype)
        runners.append(load_runner(folder, block_tokens=BLOCK_TOKENS, threads=2))
    for runner in runners:
        for slot, (offset, rank) in RANKS.items():
            write_random_adapter(runner, slot, offset, rank)
    return runners[0], runners[1]


def widened(folder: Path) -> PreTrainedModel:
    """The oracle: what the folder holds, in fp32."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager").eval()
    assert isinstance(model, PreTrainedModel)
    return model


def matrix_dtypes(runner: TorchRunner) -> set[torch.dtype]:
    decoder = runner._decoder
    found = {decoder.embedding.dtype, decoder.head.dtype}
    for layer in decoder.layers:
        linears = (layer.attention.qkv, layer.attention.o, layer.mlp.gate_up, layer.mlp.down)
        found |= {linear.weight.dtype for linear in linears}
    return found


def batch(lengths: Sequence[tuple[int, int]], starts: Sequence[int], seed: int) -> Batch:
    """Rows of these (slot, tokens), each in blocks of its own, of which it has computed `starts` before."""
    rows = []
    for number, ((slot, count), start) in enumerate(zip(lengths, starts, strict=True)):
        tokens = prompts(131, (count,), seed=seed + number)[0]
        table = [number * 16 + block for block in range(-(-(start + count) // BLOCK_TOKENS))]
        rows.append(Row(number, tokens, start, table, slot, True, GREEDY, tokens, 0, 0))
    return Batch(tuple(rows))


def assert_same_bits(narrow: TorchRunner, wide: TorchRunner) -> None:
    """Prompts in panels and in tiles, all at once and alone, and then decode steps of one, two and five rows."""
    lengths = [length for _, length in FIRST]
    batches = [batch(FIRST, [0] * len(FIRST), 1)]
    batches += [batch([(slot, 1) for slot, _ in FIRST], [length + step for length in lengths], 50) for step in range(3)]
    batches += [batch(FIRST[:2], [0, 0], 2), batch([(0, 90)], [0], 3), batch([(1, 1)], [90], 4)]
    batches += [batch([(BASE_SLOT, 1), (2, 1)], [100, 7], 5)]
    for one in batches:
        found, wanted = narrow.logits(one), wide.logits(one)
        assert bool(wanted.isfinite().all())
        assert torch.equal(found, wanted)


@pytest.mark.parametrize("name", CONFIGS)
def test_bf16_weights_give_the_bits_of_fp32_ones(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_base(name, tmp_path).to(torch.bfloat16).save_pretrained(tmp_path)
    narrow, wide = both(tmp_path, monkeypatch)
    assert (matrix_dtypes(narrow), matrix_dtypes(wide)) == ({torch.bfloat16}, {torch.float32})
    assert narrow._pool.dtype == narrow._cache._cells.dtype == torch.float32
    assert_same_bits(narrow, wide)


@pytest.mark.parametrize("name", ["llama-gqa", "gemma2-gqa", "gemma3-mqa", "qwen2-window-tied"])
def test_fp16_weights_too(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_base(name, tmp_path).to(torch.float16).save_pretrained(tmp_path)
    narrow, wide = both(tmp_path, monkeypatch)
    assert (matrix_dtypes(narrow), matrix_dtypes(wide)) == ({torch.float16}, {torch.float32})
    assert_same_bits(narrow, wide)


@pytest.mark.parametrize("name", ONE_OF_EACH_FAMILY)
def test_they_give_the_logits_of_transformers_in_fp32(name: str, tmp_path: Path) -> None:
    make_base(name, tmp_path).to(torch.bfloat16).save_pretrained(tmp_path)
    model = widened(tmp_path)
    runner = load_runner(tmp_path)
    jobs = [Job(prompt, num_tokens=40) for prompt in prompts(runner.vocab_size, (1, 20, 90))]
    decode(runner, jobs, block_tokens=16)
    for job in jobs:
        assert_agrees(model, job)
    assert matrix_dtypes(runner) == {torch.bfloat16}


def cut(folder: Path, other: torch.dtype, *, only_vectors: bool) -> None:
    """The folder's one file as two; of the second, matrices or else vectors have another type."""
    tensors = load_file(folder / "model.safetensors")
    names = list(tensors)
    second = {name: tensors.pop(name) for name in names[len(names) // 2 :]}
    second = {name: one.to(other) if (one.dim() == 1) == only_vectors else one for name, one in second.items()}
    shards = {"model-1-of-2.safetensors": tensors, "model-2-of-2.safetensors": second}
    for name, part in shards.items():
        save_file(part, folder / name, metadata={"format": "pt"})
    index = {tensor: name for name, part in shards.items() for tensor in part}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": index}))
    (folder / "model.safetensors").unlink()


@pytest.mark.parametrize("other", [torch.float32, torch.float16])
def test_shards_of_several_types_are_widened_all(
    other: torch.dtype, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_base("llama-gqa", tmp_path).to(torch.bfloat16).save_pretrained(tmp_path)
    expected = load_runner(tmp_path, block_tokens=BLOCK_TOKENS)
    for slot, (offset, rank) in RANKS.items():
        write_random_adapter(expected, slot, offset, rank)
    cut(tmp_path, other, only_vectors=False)
    mixed, wide = both(tmp_path, monkeypatch)
    assert matrix_dtypes(mixed) == {torch.float32}
    assert_same_bits(mixed, wide)
    if other == torch.float32:  # the same numbers as in one file of one type; bf16 to fp16 loses the small ones
        assert_same_bits(expected, mixed)


def test_vectors_of_another_type_do_not_widen_the_matrices(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_base("gemma2-gqa", tmp_path).to(torch.bfloat16).save_pretrained(tmp_path)
    cut(tmp_path, torch.float32, only_vectors=True)
    narrow, wide = both(tmp_path, monkeypatch)
    assert matrix_dtypes(narrow) == {torch.bfloat16}
    assert_same_bits(narrow, wide)


def test_what_would_lose_something_is_converted_as_ever(tmp_path: Path) -> None:
    make_base("llama-gqa", tmp_path).to(torch.float16).save_pretrained(tmp_path)
    for dtype in ("bfloat16", "float16"):
        assert matrix_dtypes(load_runner(tmp_path, dtype=dtype)) == {getattr(torch, dtype)}


def test_without_numba_weights_are_widened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compiling, "available", False)
    make_base("llama-gqa", tmp_path).to(torch.bfloat16).save_pretrained(tmp_path)
    runner = load_runner(tmp_path)
    assert matrix_dtypes(runner) == {torch.float32}
    job = Job(prompts(runner.vocab_size, (30,))[0], num_tokens=4)
    decode(runner, [job], block_tokens=16)
    assert_agrees(widened(tmp_path), job)
