"""Adapters small enough to make in a test: plain numpy, written by the safetensors library as PEFT would."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from safetensors.numpy import save

from storage.geometry import Geometry

BASE_CONFIG: dict[str, Any] = {
    "model_type": "llama",
    "num_hidden_layers": 2,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 8,
    "max_position_embeddings": 512,
}
GEOMETRY = Geometry.from_config(BASE_CONFIG)
CONFIG: dict[str, Any] = {
    "peft_type": "LORA",
    "task_type": "CAUSAL_LM",
    "model_type": "llama",
    "base_model_name_or_path": "/models/tiny-llama",
    "r": 4,
    "lora_alpha": 8,
    "lora_dropout": 0.05,
    "bias": "none",
    "use_rslora": False,
    "use_dora": False,
    "modules_to_save": None,
    "rank_pattern": {},
    "alpha_pattern": {},
    "target_modules": ["q_proj", "v_proj", "down_proj"],
    "megatron_core": "megatron.core",
    "qalora_group_size": 16,
    "loftq_config": {},
    "runtime_config": {"ephemeral_gpu_offload": False},
}
Tensors = dict[str, npt.NDArray[Any]]


def config(**changes: Any) -> bytes:
    """A good adapter_config.json with some values changed."""
    return json.dumps(CONFIG | changes).encode()


def tensor_name(layer: int, module: str, side: str) -> str:
    """As PEFT names it."""
    block = "mlp" if module in ("gate_proj", "up_proj", "down_proj") else "self_attn"
    return f"base_model.model.model.layers.{layer}.{block}.{module}.lora_{side}.weight"


def tensors(
    modules: tuple[str, ...] = ("q_proj", "v_proj", "down_proj"), rank: int = 4, dtype: str = "float32", seed: int = 0
) -> Tensors:
    """Matrices that fit `GEOMETRY`."""
    rng = np.random.default_rng(seed)
    made: Tensors = {}
    for layer in range(GEOMETRY.num_layers):
        for module in modules:
            out_features, in_features = GEOMETRY.shape(module)
            made[tensor_name(layer, module, "A")] = rng.standard_normal((rank, in_features)).astype(dtype)
            made[tensor_name(layer, module, "B")] = rng.standard_normal((out_features, rank)).astype(dtype)
    return made


def weights(made: Tensors | None = None) -> bytes:
    """A safetensors file."""
    return save(tensors() if made is None else made, metadata={"format": "pt"})


def write_base(folder: Path, **changes: Any) -> Path:
    """A model folder as far as the gateway reads it."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(BASE_CONFIG | changes))
    return folder
