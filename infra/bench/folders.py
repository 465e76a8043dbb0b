"""Makes what a benchmark reads: a Hugging Face folder per shape and a PEFT folder per adapter, from seeds.

    <cache>/<shape>-<digest>/model/       config.json, model.safetensors (bfloat16, or as the shape says)
    <cache>/<shape>-<digest>/adapters/    a PEFT folder each: adapter_config.json, adapter_model.safetensors (bfloat16)
    <cache>/<shape>-<digest>/packed/      the same adapters as the gateway stores them, named by digest, and refs.json

The digest is of the shape, the adapters and `RECIPE`, so a changed recipe makes a new folder; a folder is renamed into
place when it is whole. Files are bfloat16 (but for one shape): engines that compute in float32 widen the numbers, when
they load them or when they use them, so all run the same.
"""

import hashlib
import json
import shutil
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

import msgspec
import torch
from safetensors.torch import save_file

from gateway.ingest.adapter import CONFIG_FILE, WEIGHTS_FILE, check_adapter, pack
from infra.bench.shapes import ADAPTERS, TARGETS, AdapterShape, Shape
from runtime.protocol import AdapterRef
from storage.geometry import Geometry

RECIPE: Final = 2
MAX_RANK: Final = 64
# Random values that keep their size through the layers: answers then depend on every part of the model.
BASE_GAIN: Final = 1.3
ADAPTER_B_STD: Final = 0.05


def make_folders(cache: Path, shape: Shape, progress: Callable[[float], None] = lambda fraction: None) -> Path:
    """The folder of this shape, made if it is not there; `progress` gets fractions, 0 to 1."""
    sizes = {name: value for name, value in asdict(shape).items() if (name, value) != ("stored", "bfloat16")}
    spec = json.dumps([RECIPE, sizes, [asdict(item) for item in ADAPTERS]], sort_keys=True)
    folder = cache / f"{shape.name}-{hashlib.sha256(spec.encode()).hexdigest()[:10]}"
    if folder.exists():
        return folder
    work = folder.with_suffix(".part")
    shutil.rmtree(work, ignore_errors=True)
    _write_model(work / "model", shape, lambda done: progress(0.5 * done))
    refs = {}
    for index, adapter in enumerate(ADAPTERS):
        _write_adapter(work / "adapters" / adapter.name, shape, adapter)
        refs[adapter.name] = _pack(work, adapter.name)
        progress(0.5 + 0.5 * (index + 1) / len(ADAPTERS))
    (work / "packed" / "refs.json").write_bytes(msgspec.json.encode(refs))
    work.rename(folder)
    return folder


def adapter_refs(folder: Path) -> dict[str, AdapterRef]:
    """The packed adapters by name; `object_key` is the file's name below `folder / "packed"`."""
    return msgspec.json.decode((folder / "packed" / "refs.json").read_bytes(), type=dict[str, AdapterRef])


def _write_model(folder: Path, shape: Shape, progress: Callable[[float], None]) -> None:
    folder.mkdir(parents=True)
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "num_hidden_layers": shape.layers,
        "hidden_size": shape.hidden,
        "intermediate_size": shape.ffn,
        "num_attention_heads": shape.heads,
        "num_key_value_heads": shape.kv_heads,
        "head_dim": shape.head_dim,
        "vocab_size": shape.vocab,
        "max_position_embeddings": shape.max_positions,
        "rope_theta": shape.rope_theta,
        "rms_norm_eps": shape.rms_eps,
        "hidden_act": "silu",
        "tie_word_embeddings": True,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "dtype": shape.stored,
    }
    (folder / "config.json").write_text(json.dumps(config, indent=2), encoding="utf-8")
    generator = torch.Generator().manual_seed(shape.layers * shape.hidden)
    tensors, drawn = {}, 0
    for name, size in _weights(shape):
        values = torch.randn(size, generator=generator)
        # Norms away from 1, so that an engine that forgets one computes something else.
        values = 1 + 0.1 * values if len(size) == 1 else BASE_GAIN * size[1] ** -0.5 * values
        tensors[name] = values.to(getattr(torch, shape.stored))
        drawn += values.numel()
        progress(drawn / shape.num_weights)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def _weights(shape: Shape) -> Iterator[tuple[str, tuple[int, ...]]]:
    yield "model.embed_tokens.weight", (shape.vocab, shape.hidden)
    for layer in range(shape.layers):
        prefix = f"model.layers.{layer}"
        for target in TARGETS:
            yield f"{prefix}.{_block(target)}.{target}.weight", _size(shape, target)
        yield f"{prefix}.input_layernorm.weight", (shape.hidden,)
        yield f"{prefix}.post_attention_layernorm.weight", (shape.hidden,)
    yield "model.norm.weight", (shape.hidden,)


def _write_adapter(folder: Path, shape: Shape, adapter: AdapterShape) -> None:
    folder.mkdir(parents=True)
    config: dict[str, Any] = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": shape.name,
        "model_type": "llama",
        "r": adapter.rank,
        "lora_alpha": adapter.alpha,
        "lora_dropout": 0.0,
        "bias": "none",
        "target_modules": list(TARGETS),
        "inference_mode": True,
    }
    (folder / CONFIG_FILE).write_text(json.dumps(config, indent=2), encoding="utf-8")
    generator = torch.Generator().manual_seed(adapter.seed)
    tensors = {}
    for layer in range(shape.layers):
        for target in TARGETS:
            rows, columns = _size(shape, target)
            name = f"base_model.model.model.layers.{layer}.{_block(target)}.{target}"
            halves = (("A", (adapter.rank, columns), columns**-0.5), ("B", (rows, adapter.rank), ADAPTER_B_STD))
            for half, size, std in halves:
                values = torch.randn(size, generator=generator) * std
                tensors[f"{name}.lora_{half}.weight"] = values.bfloat16()
    save_file(tensors, folder / WEIGHTS_FILE, metadata={"format": "pt"})


def _pack(folder: Path, name: str) -> AdapterRef:
    """The way of an upload: checked against the base, packed, named by its digest."""
    geometry = Geometry.from_folder(folder / "model")
    source = folder / "adapters" / name
    weights, out = source / WEIGHTS_FILE, folder / "packed" / name
    out.parent.mkdir(exist_ok=True)
    checked = check_adapter((source / CONFIG_FILE).read_bytes(), weights, geometry, MAX_RANK)
    packed = pack(checked, weights, geometry, out)
    out.rename(out.with_name(packed.digest))
    return AdapterRef(packed.digest, packed.digest, packed.size_bytes, packed.rank, name)


def _block(target: str) -> str:
    return "self_attn" if target[0] in "qkvo" else "mlp"


def _size(shape: Shape, target: str) -> tuple[int, int]:
    """(out, in) of a linear map."""
    query, key_value = shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim
    outs = {"q_proj": query, "k_proj": key_value, "v_proj": key_value, "gate_proj": shape.ffn, "up_proj": shape.ffn}
    ins = {"o_proj": query, "down_proj": shape.ffn}
    return outs.get(target, shape.hidden), ins.get(target, shape.hidden)
