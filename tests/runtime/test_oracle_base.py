"""Every supported family gives the logits and the greedy text of transformers, however the work is cut."""

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from kernels.cpu import compiling
from runtime.runner import TorchRunner
from tests.runtime.bases import CONFIGS
from tests.runtime.oracle import Job, assert_agrees, decode, load_runner, make_base, prompts

ONE_OF_EACH_FAMILY = [
    "llama-gqa",
    "mistral-window",
    "gemma-mqa",
    "gemma2-gqa",
    "gemma3-gqa",
    "qwen2-window-tied",
    "qwen3-gqa",
]
DEMO = Path(__file__).parents[2] / "gateway" / "demo" / "data" / "base"


@pytest.mark.parametrize("name", CONFIGS)
def test_prefill_and_every_decode_step_equal_transformers(name: str, tmp_path: Path) -> None:
    model = make_base(name, tmp_path)
    runner = load_runner(tmp_path, block_tokens=16)
    jobs = [Job(prompt, num_tokens=128) for prompt in prompts(runner.vocab_size, (1, 20, 37))]  # the windows are 19
    decode(runner, jobs, block_tokens=16)
    for job in jobs:
        assert_agrees(model, job)
    assert runner.num_parameters == sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize(("block_tokens", "chunk"), [(1, 0), (7, 5), (16, 16), (32, 1), (64, 33)])
@pytest.mark.parametrize("name", ONE_OF_EACH_FAMILY)
def test_block_size_chunking_and_preemption_change_nothing(
    name: str, block_tokens: int, chunk: int, tmp_path: Path
) -> None:
    model = make_base(name, tmp_path)
    runner = load_runner(tmp_path, block_tokens=block_tokens, kv_tokens=1024)
    lengths = (50, 3, 21)
    jobs = [
        Job(prompt, num_tokens=128, chunk=chunk, arrives=2 * i)
        for i, prompt in enumerate(prompts(runner.vocab_size, lengths))
    ]
    decode(runner, jobs, block_tokens=block_tokens, preempt_at=(3, 9, 10, 17, 70, 121))
    for job in jobs:
        assert_agrees(model, job)


@pytest.mark.parametrize("name", ONE_OF_EACH_FAMILY)
def test_without_numba_torch_gives_the_same(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compiling, "available", False)
    model = make_base(name, tmp_path)
    runner = load_runner(tmp_path, block_tokens=7)
    lengths = (1, 20, 95, 3)
    jobs = [
        Job(text, num_tokens=24, chunk=13, arrives=index)
        for index, text in enumerate(prompts(runner.vocab_size, lengths))
    ]
    decode(runner, jobs, block_tokens=7, preempt_at=(5, 11))
    for job in jobs:
        assert_agrees(model, job)


@pytest.mark.parametrize("name", ["llama-gqa", "gemma2-gqa"])
def test_rows_of_very_different_lengths_share_a_step(name: str, tmp_path: Path) -> None:
    """Long and short contexts are attended in separate groups; each must still see only its own cells."""
    model = make_base(name, tmp_path)
    runner = load_runner(tmp_path, block_tokens=2)
    lengths = (230, 2, 5, 4, 60, 3, 9, 2, 7)
    jobs = [Job(prompt, num_tokens=16) for prompt in prompts(runner.vocab_size, lengths)]
    decode(runner, jobs, block_tokens=2, order=5)
    for job in jobs:
        assert_agrees(model, job)


@pytest.mark.parametrize("name", ["llama-gqa", "gemma2-gqa", "gemma3-gqa", "qwen2-window-tied"])
def test_batch_mates_and_order_change_no_token(name: str, tmp_path: Path) -> None:
    make_base(name, tmp_path)
    runner = load_runner(tmp_path)
    texts = prompts(runner.vocab_size, (30, 4, 17, 9, 25))

    def alone(text: list[int]) -> list[int]:
        return decode(runner, [Job(text)], block_tokens=16)[0]

    expected = [alone(text) for text in texts]
    together = decode(runner, [Job(text) for text in texts], block_tokens=16)
    staggered = [Job(text, arrives=3 * i, chunk=6) for i, text in enumerate(reversed(texts))]
    assert together == expected
    assert decode(runner, staggered, block_tokens=16, order=9) == expected[::-1]
    assert len({tuple(answer) for answer in expected}) == len(expected)  # or the comparison would prove nothing


@pytest.mark.parametrize(("dtype", "tolerance"), [("bfloat16", 0.05), ("float16", 0.01)])
@pytest.mark.parametrize("name", ["gemma-mqa", "gemma2-gqa", "gemma3-mqa", "qwen2-gqa", "qwen3-gqa"])
def test_half_precision_stays_near_transformers_in_the_same_precision(
    name: str, dtype: str, tolerance: float, tmp_path: Path
) -> None:
    model = make_base(name, tmp_path).to(getattr(torch, dtype))
    runner = load_runner(tmp_path, dtype=dtype)
    job = Job(prompts(runner.vocab_size, (40,))[0], num_tokens=1)
    decode(runner, [job], block_tokens=16)
    with torch.no_grad():
        expected = model(torch.tensor([job.prompt])).logits[0, -1].float()
    error = (job.logits[0].float() - expected).norm() / expected.norm()
    assert float(error) < tolerance


@pytest.mark.skipif(not (DEMO / "model.safetensors").is_file(), reason="the demo base has not been trained")
@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 1e-4), ("bfloat16", 0.02)])
def test_the_demo_base_gives_the_logits_of_transformers(dtype: str, tolerance: float) -> None:
    model = AutoModelForCausalLM.from_pretrained(DEMO, dtype=getattr(torch, dtype))
    runner = TorchRunner.load(
        DEMO, device="cpu", dtype=dtype, threads=1, kv_bytes=2**24, block_tokens=16, adapter_rows=8
    )
    jobs = [Job(prompt, num_tokens=4) for prompt in prompts(runner.vocab_size, (60, 7))]
    decode(runner, jobs, block_tokens=16)
    for job in jobs:
        with torch.no_grad():
            expected = model(torch.tensor([job.prompt])).logits[0, -1].float()
        error = (job.logits[0].float() - expected).norm() / expected.norm()
        assert float(error) < tolerance
