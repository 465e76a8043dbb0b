"""A folder of every family, written by transformers, answers through the public API, also with an adapter."""

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from tokenizers import Tokenizer
from transformers import (
    AutoModelForCausalLM,
    Gemma2Config,
    Gemma3TextConfig,
    GemmaConfig,
    LlamaConfig,
    MistralConfig,
    PretrainedConfig,
    PreTrainedModel,
    Qwen2Config,
    Qwen3Config,
)

from gateway.demo import BASE_FOLDER
from tests.e2e.deployment import Caller, deploy

# transformers warns of a name of its own that PEFT still uses.
pytestmark = [
    pytest.mark.timeout(240),
    pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing.*:FutureWarning"),
]

SIZES: dict[str, Any] = {
    "vocab_size": 1024, "hidden_size": 48, "intermediate_size": 80, "num_hidden_layers": 3, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 256, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0,
    "initializer_range": 0.2,
}  # fmt: skip
LLAMA3: dict[str, Any] = {
    "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32, "rope_theta": 5e5,
}  # fmt: skip
BASES: dict[str, PretrainedConfig] = {
    "@cf/ours/llama3": LlamaConfig(**SIZES, rope_parameters=LLAMA3, tie_word_embeddings=True),
    "@cf/ours/mistral": MistralConfig(**SIZES, sliding_window=7),
    "@cf/ours/gemma": GemmaConfig(**{**SIZES, "num_key_value_heads": 1}, head_dim=16),
    "@cf/ours/gemma2": Gemma2Config(**SIZES, head_dim=16, sliding_window=7, query_pre_attn_scalar=16),
    "@cf/ours/gemma3": Gemma3TextConfig(**SIZES, head_dim=16, sliding_window=7, query_pre_attn_scalar=16),
    "@cf/ours/qwen2.5": Qwen2Config(**SIZES),
    "@cf/ours/qwen3": Qwen3Config(**SIZES, head_dim=16),
}
PROMPT = "What does Molbury sell at the market?"
ADAPTED = "@cf/ours/qwen3"


def test_every_family_answers_as_transformers_does(tmp_path: Path) -> None:
    models = {name: _base(tmp_path / name, config) for name, config in BASES.items()}
    text = "demo_model = false\n" + "".join(f'[models."{name}"]\npath = "{tmp_path / name}"\n' for name in BASES)
    (tmp_path / "lorikeet.toml").write_text(text)
    with deploy(tmp_path / "data", LORIKEET_CONFIG=str(tmp_path / "lorikeet.toml")) as deployment:
        caller = deployment.account("families")
        for name, model in models.items():
            assert _answer(caller, name) == _greedy(model)
        config = LoraConfig(r=6, target_modules="all-linear", init_lora_weights=False, task_type="CAUSAL_LM")
        adapted = get_peft_model(models[ADAPTED], config)
        adapted.save_pretrained(tmp_path / "adapter")
        with caller.http() as http:
            finetune = http.post("/ai/finetunes", json={"model": ADAPTED, "name": "ours"}).json()["result"]["id"]
            for file_name in ("adapter_config.json", "adapter_model.safetensors"):
                reply = http.post(
                    f"/ai/finetunes/{finetune}/finetune-assets",
                    data={"file_name": file_name},
                    files={"file": ("blob", (tmp_path / "adapter" / file_name).read_bytes())},
                )
                assert reply.status_code == 200, reply.text
        with_adapter = _greedy(adapted)
        assert _answer(caller, ADAPTED, lora="ours") == with_adapter
        with adapted.disable_adapter():
            assert _greedy(adapted) != with_adapter


def _base(folder: Path, config: PretrainedConfig) -> PreTrainedModel:
    """A base with random weights and the demo's tokenizer."""
    torch.manual_seed(7)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32, attn_implementation="eager")
    model.save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(BASE_FOLDER / name, folder / name)
    assert isinstance(model, PreTrainedModel)
    return model.eval()


def _greedy(model: Any) -> str:
    tokenizer = Tokenizer.from_file(str(BASE_FOLDER / "tokenizer.json"))
    ids = tokenizer.encode(PROMPT, add_special_tokens=False).ids
    out = model.generate(
        input_ids=torch.tensor([ids]), attention_mask=torch.ones(1, len(ids)), max_new_tokens=24, do_sample=False
    )
    text = str(tokenizer.decode(out[0, len(ids) :].tolist()))
    return text.rstrip("\ufffd")  # an answer does not end in part of a character


def _answer(caller: Caller, name: str, **body: Any) -> str:
    asked = {"prompt": PROMPT, "raw": True, "temperature": 0, "max_tokens": 24, **body}
    with caller.http() as http:
        reply = http.post(f"/ai/run/{name}", json=asked)
    assert reply.status_code == 200, reply.text
    return str(reply.json()["result"]["response"]).rstrip("\ufffd")
