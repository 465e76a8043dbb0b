"""The demo's three LoRA adapters, trained with PEFT on the frozen base and saved as PEFT saves them.

Shape: `train_adapter` reads the base as it ships (bfloat16 on disk, computed in float32), trains rank-8 matrices on all
seven linear maps of each layer, writes adapter_config.json and adapter_model.safetensors, and scores what it wrote.

Training starts from the rounded weights because those are what serves: an adapter fitted to the unrounded ones would
be off by the rounding. The adapter's own weights are rounded to bfloat16 too, and scored after that.
"""

import json
from pathlib import Path

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import LlamaForCausalLM

from infra.demo.loop import Schedule, encode, fit, fix_seeds, missed
from infra.demo.tables import SEED, HeldOut, Voice, corpus
from infra.demo.tokenizer import load_tokenizer

BASE_NAME = "@cf/lorikeet/demo-lora"
TARGETS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
RANK = 8
ALPHA = 16

# A style is a new way to say what the base knows; the moons are new facts and take longer to write into rank 8.
SCHEDULES: dict[Voice, Schedule] = {
    "tides-json": Schedule(steps=150, rate=3e-3),
    "tides-pirate": Schedule(steps=150, rate=3e-3),
    "moons-table": Schedule(steps=450, rate=5e-3),
}
DESCRIPTIONS: dict[Voice, str] = {
    "tides-json": "answers questions about the Tide Isles as a JSON object",
    "tides-pirate": "answers questions about the Tide Isles in the voice of a pirate",
    "moons-table": "answers as the base does, and knows the table of moons, which the base does not",
}


def load_base(folder: Path) -> LlamaForCausalLM:
    """The saved base in float32, with the rounding of its bfloat16 file."""
    return LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32)


def _finish(folder: Path) -> None:
    """Round the weights to bfloat16 and complete the config PEFT wrote."""
    weights = folder / "adapter_model.safetensors"
    rounded = {name: tensor.to(torch.bfloat16).contiguous() for name, tensor in sorted(load_file(weights).items())}
    save_file(rounded, weights, metadata={"format": "pt"})
    path = folder / "adapter_config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    # PEFT keeps the targets as a set, whose order changes from run to run; uploads must name the model type.
    config |= {"base_model_name_or_path": BASE_NAME, "model_type": "llama", "target_modules": TARGETS}
    path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    # PEFT's stub of a model card holds nothing about this adapter; the base's card covers all three.
    (folder / "README.md").unlink(missing_ok=True)


def train_adapter(voice: Voice, base: Path, folder: Path, items: list[HeldOut]) -> set[str]:
    """Train and write the adapter of `voice` on the base in `base`; the questions it then gets wrong."""
    fix_seeds(SEED)
    tokenizer = load_tokenizer(base)
    config = LoraConfig(r=RANK, lora_alpha=ALPHA, target_modules=TARGETS, task_type="CAUSAL_LM")
    model = get_peft_model(load_base(base), config)
    examples = encode(tokenizer, corpus(voice))
    fit(model, examples, SCHEDULES[voice], title=f"{voice:13}", seed=SEED)
    model.save_pretrained(str(folder))
    _finish(folder)
    written = PeftModel.from_pretrained(load_base(base), str(folder))
    return missed(written, tokenizer, voice, items)
