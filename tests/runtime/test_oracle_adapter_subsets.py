"""Adapters on subsets of the linear modules, eight to a batch, and adapters on bases in half precision."""

from itertools import combinations
from pathlib import Path

import pytest
import torch
from peft import LoraConfig

from runtime.batch import BASE_SLOT
from storage.geometry import MODULES
from tests.runtime.oracle import (
    Job,
    add_adapters,
    assert_agrees,
    decode,
    load_runner,
    make_base,
    oracle_logits,
    packed_adapter,
    prompts,
)

# transformers warns of a name of its own that PEFT still uses.
pytestmark = pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing.*:FutureWarning")

SLOTS = 8
# One and two modules, all but one, all: every combination within each fused group, with and without the other groups.
SUBSETS = [subset for size in (1, 2, len(MODULES) - 1, len(MODULES)) for subset in combinations(MODULES, size)]


def test_subsets_of_the_linear_modules_equal_peft(tmp_path: Path) -> None:
    configs = {
        " ".join(subset): LoraConfig(
            r=1 + index % 5, lora_alpha=2 + index % 3, target_modules=list(subset), init_lora_weights=False
        )
        for index, subset in enumerate(SUBSETS)
    }
    peft_model = add_adapters(make_base("qwen3-gqa", tmp_path), configs)
    runner = load_runner(tmp_path)
    names, layers = list(configs), runner.geometry.num_layers
    for start in range(0, len(names), SLOTS):
        jobs = [Job(prompts(runner.vocab_size, (6,), seed=start)[0], num_tokens=3)]
        group = names[start : start + SLOTS]
        for slot, name in enumerate(group):
            runner.write_adapter(slot, 8 * slot, packed_adapter(peft_model, name, runner.geometry), 0, layers)
            jobs.append(Job(jobs[0].prompt, slot=slot, num_tokens=3, arrives=slot % 2))
        decode(runner, jobs, block_tokens=16, order=start)
        for job in jobs:
            if job.slot == BASE_SLOT:
                with peft_model.disable_adapter():
                    assert_agrees(peft_model, job)
            else:
                peft_model.set_adapter(group[job.slot])
                assert_agrees(peft_model, job)
        for slot in range(len(group)):
            runner.release_slot(slot)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("name", ["llama-gqa", "gemma2-gqa"])
def test_in_half_precision_we_are_as_near_the_truth_as_peft_is(name: str, dtype: str, tmp_path: Path) -> None:
    configs = {
        "x": LoraConfig(r=7, lora_alpha=4, target_modules="all-linear", init_lora_weights=False),
        "y": LoraConfig(r=2, lora_alpha=2, target_modules=["q_proj", "down_proj"], init_lora_weights=False),
    }
    peft_model = add_adapters(make_base(name, tmp_path), configs)
    runner = load_runner(tmp_path, dtype=dtype)
    for slot, adapter in enumerate(configs):
        packed = packed_adapter(peft_model, adapter, runner.geometry)
        runner.write_adapter(slot, 16 * slot, packed, 0, runner.geometry.num_layers)
    slots = (BASE_SLOT, 0, 1, 0)
    jobs = [
        Job(text, slot=slot, num_tokens=24)
        for text, slot in zip(prompts(runner.vocab_size, (40, 9, 22, 3)), slots, strict=True)
    ]
    decode(runner, jobs, block_tokens=16)

    def logits(job: Job) -> torch.Tensor:
        if job.slot == BASE_SLOT:
            with peft_model.disable_adapter():
                return oracle_logits(peft_model, job).float()
        peft_model.set_adapter(list(configs)[job.slot])
        return oracle_logits(peft_model, job).float()

    exact = torch.cat([logits(job) for job in jobs])
    peft_model = peft_model.to(getattr(torch, dtype))
    theirs = (torch.cat([logits(job) for job in jobs]) - exact).norm()
    ours = (torch.cat([torch.stack(job.logits) for job in jobs]).float() - exact).norm()
    assert 0 < float(ours) < 1.3 * float(theirs), (float(ours / exact.norm()), float(theirs / exact.norm()))
