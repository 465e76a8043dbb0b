"""From the files that PEFT saves, through the upload's checks and the packed file, to the tokens that PEFT gives."""

from pathlib import Path

import pytest
import torch
from peft import LoraConfig, PeftModel
from safetensors.torch import load_file, save_file

from gateway.ingest.adapter import CONFIG_FILE, WEIGHTS_FILE, AdapterRefused, check_adapter, pack
from runtime.batch import BASE_SLOT
from runtime.runner import TorchRunner
from storage.geometry import Geometry
from storage.packed import Packed, read_packed
from tests.runtime.oracle import Job, add_adapters, assert_agrees, decode, load_runner, make_base, prompts

# transformers warns of a name of its own that PEFT still uses.
pytestmark = pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing.*:FutureWarning")

MAX_RANK = 64
ADAPTERS = {
    "every linear": LoraConfig(r=64, lora_alpha=16, target_modules="all-linear", init_lora_weights=False),
    "an expression": LoraConfig(
        r=5,
        lora_alpha=7,
        target_modules=r".*\.(q|v)_proj|.*layers\.1\.mlp\.down_proj",
        init_lora_weights=False,
    ),
    "chosen layers": LoraConfig(
        r=2,
        lora_alpha=9,
        target_modules=["q_proj", "o_proj", "gate_proj"],
        layers_to_transform=[0, 2],
        layers_pattern="layers",
        init_lora_weights=False,
    ),
    "one layer": LoraConfig(
        r=1, lora_alpha=3, target_modules=["k_proj", "up_proj"], layers_to_transform=1, init_lora_weights=False
    ),
    "rslora": LoraConfig(
        r=33, lora_alpha=5, use_rslora=True, target_modules=["v_proj", "down_proj"], init_lora_weights=False
    ),
    "patterns": LoraConfig(
        r=4,
        lora_alpha=2,
        target_modules="all-linear",
        exclude_modules=["gate_proj"],
        rank_pattern={"k_proj": 17, r"layers\.[01]\.self_attn\.o_proj": 3, "^model.layers.2.mlp.up_proj": 8},
        alpha_pattern={"down_proj": 7, "model.layers.0.self_attn.q_proj": 1.5},
        use_rslora=True,
        init_lora_weights=False,
    ),
    "one module": LoraConfig(r=8, target_modules=["model.layers.2.self_attn.o_proj"], init_lora_weights=False),
}


def uploaded(model: PeftModel, name: str, base: Path, folder: Path, dtype: torch.dtype) -> Packed:
    """The adapter as its owner would save and upload it, and as the server packs it.

    With half precision the model's own weights are rounded first, so that the files hold exactly what PEFT computes.
    """
    with torch.no_grad():
        for parameter_name, parameter in model.named_parameters():
            if f".{name}." in parameter_name:
                parameter.copy_(parameter.to(dtype).float())
    model.save_pretrained(folder, selected_adapters=[name])
    weights = folder / name / WEIGHTS_FILE
    save_file({key: tensor.to(dtype) for key, tensor in load_file(weights).items()}, weights)
    geometry = Geometry.from_folder(base)
    checked = check_adapter((folder / name / CONFIG_FILE).read_bytes(), weights, geometry, MAX_RANK)
    pack(checked, weights, geometry, folder / f"{name}.packed")
    return read_packed((folder / f"{name}.packed").read_bytes())


def place(runner: TorchRunner, packed: list[Packed]) -> None:
    offset = 0
    for slot, adapter in enumerate(packed):
        runner.write_adapter(slot, offset, adapter, 0, runner.geometry.num_layers)
        offset += adapter.header.rank


@pytest.mark.parametrize(
    ("base", "dtype"),
    [
        ("llama-gqa", torch.float32),
        ("llama-gqa", torch.float16),
        ("llama-gqa", torch.bfloat16),
        ("gemma2-gqa", torch.float32),
        ("gemma3-mqa", torch.float32),
        ("mistral-window", torch.float32),
        ("qwen2-window-tied", torch.float32),
        ("qwen3-mqa-biases", torch.float32),
    ],
)
def test_saved_adapters_equal_peft_merged_and_unmerged(base: str, dtype: torch.dtype, tmp_path: Path) -> None:
    model = add_adapters(make_base(base, tmp_path / "base"), ADAPTERS)
    packed = [uploaded(model, name, tmp_path / "base", tmp_path / "saved", dtype) for name in ADAPTERS]
    assert {adapter.header.dtype for adapter in packed} == {str(dtype).removeprefix("torch.")}
    runner = load_runner(tmp_path / "base", adapter_rows=160)
    place(runner, packed)
    slots = [BASE_SLOT, *range(len(packed)), BASE_SLOT]
    texts = prompts(runner.vocab_size, range(3, 3 + 5 * len(slots), 5))
    jobs = [
        Job(text, slot=slot, chunk=13 if i % 2 else 0, arrives=i % 3)
        for i, (text, slot) in enumerate(zip(texts, slots, strict=True))
    ]
    decode(runner, jobs, block_tokens=16, order=2, preempt_at=(4, 15))
    names = list(ADAPTERS)
    for job in jobs:
        if job.slot == BASE_SLOT:
            with model.disable_adapter():
                assert_agrees(model, job)
            continue
        model.set_adapter(names[job.slot])
        assert_agrees(model, job)
        model.merge_adapter([names[job.slot]])
        assert_agrees(model, job)
        for module in model.modules():
            if getattr(module, "merged", False) is True:  # PEFT warns of the others
                module.unmerge()
    assert len({tuple(job.answer) for job in jobs}) == len(jobs)


REFUSED = {
    "DoRA": (LoraConfig(r=2, target_modules=["q_proj"], use_dora=True), "use_dora is not supported"),
    "LoRA biases": (LoraConfig(r=2, target_modules=["q_proj"], lora_bias=True), "lora_bias is not supported"),
    "the base's biases": (LoraConfig(r=2, target_modules=["q_proj"], bias="lora_only"), 'bias must be "none"'),
    "whole modules": (LoraConfig(r=2, target_modules=["q_proj"], modules_to_save=["lm_head"]), "modules_to_save"),
    "the head": (LoraConfig(r=2, target_modules=["q_proj", "lm_head"]), "lm_head"),
    "embeddings": (LoraConfig(r=2, target_modules=["embed_tokens"]), "embed_tokens"),
    "tokens": (LoraConfig(r=2, target_modules=["q_proj"], trainable_token_indices=[1]), "trainable_token_indices"),
    "a rank too large": (LoraConfig(r=MAX_RANK + 1, target_modules=["q_proj"]), "rank 65 is above the limit"),
    "a pattern too large": (
        LoraConfig(r=2, target_modules=["q_proj"], rank_pattern={"q_proj": 99}),
        "rank_pattern asks for rank 99",
    ),
    "another start": (LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights="pissa"), "init_lora_weights"),
}


@pytest.mark.filterwarnings("ignore:Setting `save_embedding_layers`", "ignore:Adapter 'default'")
@pytest.mark.parametrize("case", REFUSED)
def test_what_peft_saves_and_is_not_served_is_refused_with_the_reason(case: str, tmp_path: Path) -> None:
    config, reason = REFUSED[case]
    model = add_adapters(make_base("qwen2-gqa", tmp_path / "base"), {"default": config})
    model.save_pretrained(tmp_path)
    with pytest.raises(AdapterRefused) as caught:
        check_adapter(
            (tmp_path / CONFIG_FILE).read_bytes(),
            tmp_path / WEIGHTS_FILE,
            Geometry.from_folder(tmp_path / "base"),
            MAX_RANK,
        )
    assert reason in str(caught.value)
