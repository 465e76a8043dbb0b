"""Who else is in the batch, in which order, in which chunks, on how many threads: not a bit of difference.

The CPU's kernels add in the same order whatever the shape of the work, so this holds in bf16 and fp16 too, where
the smallest difference would soon make another text. The base here is wide enough for the products of real models.
"""

from pathlib import Path

import pytest
import torch
from peft import LoraConfig, PeftModel
from transformers import AutoModelForCausalLM, LlamaConfig

from runtime.batch import BASE_SLOT
from runtime.runner import TorchRunner
from tests.runtime.oracle import Job, add_adapters, decode, load_runner, make_base, packed_adapter, prompts

# transformers warns of a name of its own that PEFT still uses.
pytestmark = pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing.*:FutureWarning")

ADAPTERS = {
    "x": LoraConfig(r=16, lora_alpha=16, target_modules="all-linear", init_lora_weights=False),
    "y": LoraConfig(r=3, lora_alpha=3, target_modules=["q_proj", "v_proj"], init_lora_weights=False),
}
SLOTS = [BASE_SLOT, 0, 1, BASE_SLOT, 0, 1, 0, BASE_SLOT]
LENGTHS = (30, 4, 17, 9, 25, 41, 7, 13)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("wide")


@pytest.fixture(scope="module")
def model(folder: Path) -> PeftModel:
    torch.manual_seed(1)
    config = LlamaConfig(
        hidden_size=576,
        intermediate_size=1100,
        num_hidden_layers=3,
        num_attention_heads=9,
        num_key_value_heads=3,
        vocab_size=2048,
        max_position_embeddings=256,
        initializer_range=0.05,
    )
    base = AutoModelForCausalLM.from_config(config)
    base.save_pretrained(folder)
    return add_adapters(base, ADAPTERS)


def runner_of(folder: Path, model: PeftModel, dtype: str, threads: int = 2) -> TorchRunner:
    runner = load_runner(folder, dtype=dtype, threads=threads)
    for slot, name in enumerate(ADAPTERS):
        runner.write_adapter(slot, 32 * slot, packed_adapter(model, name, runner.geometry), 0, 3)
    return runner


def answered(runner: TorchRunner, company: str) -> list[Job]:
    """Every text with its adapter: alone, all at once, or in a crowd that comes and goes in another order."""
    places = list(zip(prompts(runner.vocab_size, LENGTHS), SLOTS, strict=True))
    if company == "alone":
        jobs = [Job(text, slot=slot, num_tokens=24) for text, slot in places]
        for job in jobs:
            decode(runner, [job], block_tokens=16)
        return jobs
    if company == "together":
        jobs = [Job(text, slot=slot, num_tokens=24) for text, slot in places]
        decode(runner, jobs, block_tokens=16)
        return jobs
    jobs = [Job(text, slot=slot, num_tokens=24, chunk=6, arrives=3 * i) for i, (text, slot) in enumerate(places[::-1])]
    decode(runner, jobs, block_tokens=16, order=7, preempt_at=(5, 20))
    return jobs[::-1]


def assert_same_bits(first: list[Job], second: list[Job]) -> None:
    for one, other in zip(first, second, strict=True):
        assert one.answer == other.answer
        assert len(one.logits) == len(other.logits)
        assert all(torch.equal(mine, theirs) for mine, theirs in zip(one.logits, other.logits, strict=True))


@pytest.mark.parametrize("company", ["together", "crowd"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_no_bit_depends_on_the_company(dtype: str, company: str, folder: Path, model: PeftModel) -> None:
    runner = runner_of(folder, model, dtype)
    alone = answered(runner, "alone")
    assert_same_bits(alone, answered(runner, company))
    assert len({tuple(job.answer) for job in alone}) == len(alone)  # or the comparison would prove nothing


def test_no_bit_depends_on_the_number_of_threads(folder: Path, model: PeftModel) -> None:
    one, three = (answered(runner_of(folder, model, "bfloat16", threads), "crowd") for threads in (1, 3))
    assert_same_bits(one, three)


@pytest.mark.parametrize("name", ["gemma2-gqa", "gemma3-gqa", "mistral-window", "qwen3-gqa"])
def test_no_bit_depends_on_blocks_chunks_or_windows(name: str, tmp_path: Path) -> None:
    make_base(name, tmp_path)
    texts = prompts(131, (70, 5, 41))
    answers = []
    for block_tokens, chunk, together in ((16, 0, False), (5, 9, True), (1, 1, True), (64, 33, True)):
        runner = load_runner(tmp_path, dtype="bfloat16", block_tokens=block_tokens)
        jobs = [Job(text, num_tokens=24, chunk=chunk, arrives=5 * i) for i, text in enumerate(texts)]
        for batch in [jobs] if together else [[job] for job in jobs]:
            decode(runner, batch, block_tokens=block_tokens)
        answers.append(jobs)
    for jobs in answers[1:]:
        assert_same_bits(answers[0], jobs)
