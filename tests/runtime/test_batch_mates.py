"""Who else is in the batch, and in which order: not a token of difference in fp32, roundings only in half precision.

A matrix product of another shape adds in another order, so the last bits of a row do move with the number of rows. In
fp32 that is a millionth of the logits, far below what separates two tokens. In bf16 it is about a hundredth: where two
tokens are as good as equal, either may win. The base here is wide enough for the products that real models take.
"""

from pathlib import Path

import pytest
import torch
from peft import LoraConfig, PeftModel
from transformers import AutoModelForCausalLM, LlamaConfig

from runtime.batch import BASE_SLOT
from runtime.runner import TorchRunner
from tests.runtime.oracle import Job, add_adapters, decode, load_runner, packed_adapter, prompts

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


def runner_of(folder: Path, model: PeftModel, dtype: str) -> TorchRunner:
    runner = load_runner(folder, dtype=dtype)
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


def furthest_apart(first: list[Job], second: list[Job]) -> float:
    """Norm-relative, over all steps before which the two have said the same."""
    worst = 0.0
    for one, other in zip(first, second, strict=True):
        for step, (mine, theirs) in enumerate(zip(one.logits, other.logits, strict=True)):
            if one.answer[:step] == other.answer[:step]:
                worst = max(worst, float((mine.float() - theirs.float()).norm() / mine.float().norm()))
    return worst


@pytest.mark.parametrize("company", ["together", "crowd"])
def test_no_token_depends_on_the_company_in_fp32(company: str, folder: Path, model: PeftModel) -> None:
    runner = runner_of(folder, model, "float32")
    alone, others = answered(runner, "alone"), answered(runner, company)
    assert [job.answer for job in others] == [job.answer for job in alone]
    assert furthest_apart(alone, others) < 2e-5
    assert len({tuple(job.answer) for job in alone}) == len(alone)


@pytest.mark.parametrize(("dtype", "rounding"), [("bfloat16", 0.05), ("float16", 0.01)])
def test_company_moves_logits_by_roundings_only_in_half_precision(
    dtype: str, rounding: float, folder: Path, model: PeftModel
) -> None:
    runner = runner_of(folder, model, dtype)
    assert furthest_apart(answered(runner, "alone"), answered(runner, "crowd")) < rounding


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_same_company_gives_the_same_bits(dtype: str, folder: Path, model: PeftModel) -> None:
    runner = runner_of(folder, model, dtype)
    answered(runner, "crowd")  # what a batch's adapters are gathered into is made once, and read from then on
    first, second = answered(runner, "crowd"), answered(runner, "crowd")
    for one, other in zip(first, second, strict=True):
        assert all(torch.equal(mine, theirs) for mine, theirs in zip(one.logits, other.logits, strict=True))
