"""Folders of every shape load; broken ones are refused with the file or tensor and the reason."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from runtime.errors import ModelInvalid, RuntimeFault
from runtime.models.attention_kinds import AttentionKind
from runtime.models.config import ModelConfig
from runtime.models.rope import Rope
from runtime.weights import open_checkpoint
from tests.runtime.oracle import Job, decode, load_runner, make_base

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("base")
    make_base("llama-gqa", folder)
    return folder


@pytest.fixture
def folder(original: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(original, tmp_path / "model"))


def edit_config(folder: Path, **changes: Any) -> None:
    path = folder / "config.json"
    config = json.loads(path.read_text())
    config.update(changes)
    path.write_text(json.dumps({key: value for key, value in config.items() if value is not ...}))


def edit_tensors(folder: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> None:
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors")


def shard(folder: Path) -> dict[str, str]:
    """Splits the file in two and writes the index; returns its weight map."""
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    names = sorted(tensors)
    parts = {"model-1-of-2.safetensors": names[::2], "model-2-of-2.safetensors": names[1::2]}
    for file, part in parts.items():
        save_file({name: tensors[name] for name in part}, folder / file)
    weight_map = {name: file for file, part in parts.items() for name in part}
    write_index(folder, weight_map)
    return weight_map


def write_index(folder: Path, weight_map: Any, _sharded: object = None) -> None:
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))


def answer(folder: Path) -> list[int]:
    return decode(load_runner(folder), [Job([5, 6, 7], num_tokens=12)], block_tokens=16)[0]


def test_shards_give_the_same_model(folder: Path) -> None:
    expected = answer(folder)
    shard(folder)
    assert answer(folder) == expected


def test_old_buffers_are_ignored(folder: Path) -> None:
    expected = answer(folder)
    edit_tensors(folder, lambda t: t.update({"model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(5)}))
    assert answer(folder) == expected


def test_the_spare_head_of_a_tied_model_is_ignored(folder: Path) -> None:
    edit_config(folder, tie_word_embeddings=True)
    with_spare = answer(folder)
    edit_tensors(folder, lambda t: t.pop("lm_head.weight"))
    assert answer(folder) == with_spare


def test_progress_rises_to_one(folder: Path) -> None:
    seen: list[float] = []
    checkpoint = open_checkpoint(folder, seen.append)
    for name, tensor in load_file(folder / "model.safetensors").items():
        checkpoint.tensor(name, tuple(tensor.shape), torch.float32, CPU)
    checkpoint.finish()
    assert seen == sorted(seen)
    assert (len(seen) > 10, seen[-1]) == (True, 1.0)


def test_tensors_are_fused_and_converted(folder: Path) -> None:
    stored = load_file(folder / "model.safetensors")
    names = [f"model.layers.0.self_attn.{name}_proj.weight" for name in "qkv"]
    fused = open_checkpoint(folder).fused(names, [tuple(stored[name].shape) for name in names], torch.bfloat16, CPU)
    assert torch.equal(fused, torch.cat([stored[name] for name in names]).bfloat16())


def truncate(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])


def lose_shard(folder: Path) -> None:
    shard(folder)
    (folder / "model-2-of-2.safetensors").unlink()


FAMILY_NAMES = "supported are gemma, gemma2, gemma3_text, llama, mistral, qwen2, qwen3"
Q0 = "model.layers.0.self_attn.q_proj.weight"

GEMMA2: dict[str, Any] = {"model_type": "gemma2", "hidden_act": "gelu_pytorch_tanh"}

BROKEN: dict[str, tuple[Callable[[Path], object], str]] = {
    "no weights": (lambda f: (f / "model.safetensors").unlink(), "neither model.safetensors nor"),
    "truncated": (truncate, "not a readable safetensors file"),
    "not safetensors": (lambda f: (f / "model.safetensors").write_bytes(b"\x00" * 64), "not a readable safetensors"),
    "missing tensor": (lambda f: edit_tensors(f, lambda t: t.pop(Q0)), f"{Q0} is missing"),
    "wrong shape": (lambda f: edit_tensors(f, lambda t: t.update({Q0: t[Q0].T.contiguous()})), "has shape"),
    "integers": (lambda f: edit_tensors(f, lambda t: t.update({Q0: t[Q0].to(torch.int8)})), "torch.int8"),
    "unknown tensor": (
        lambda f: edit_tensors(f, lambda t: t.update({"model.layers.0.self_attn.q_proj.bias": torch.ones(60)})),
        "does not use: model.layers.0.self_attn.q_proj.bias",
    ),
    "untied head missing": (lambda f: edit_tensors(f, lambda t: t.pop("lm_head.weight")), "lm_head.weight is missing"),
    "more layers than weights": (lambda f: edit_config(f, num_hidden_layers=4), "model.layers.3"),
    "fewer layers than weights": (lambda f: edit_config(f, num_hidden_layers=2), "does not use"),
    "shard missing": (lose_shard, "model-2-of-2"),
    "index names a stranger": (lambda f: write_index(f, {**shard(f), "x": "model-1-of-2.safetensors"}), "holds: x"),
    "index leaves the folder": (
        lambda f: write_index(f, {**shard(f), "x": "../model/model-1-of-2.safetensors"}),
        "not a plain file name",
    ),
    "tensor in two shards": (
        lambda f: (shard(f), save_file({Q0: torch.ones(1)}, f / "model-1-of-2.safetensors")),
        f"{Q0} is in two files",
    ),
    "index is empty": (lambda f: write_index(f, {}, shard(f)), "weight_map"),
    "index holds numbers": (lambda f: write_index(f, {"a": 1}, shard(f)), "weight_map"),
    "no config": (lambda f: (f / "config.json").unlink(), "config.json cannot be read"),
    "config is a list": (lambda f: (f / "config.json").write_text("[]"), "not a JSON object"),
    "config is not JSON": (lambda f: (f / "config.json").write_text("{"), "config.json cannot be read"),
    "generation config is not JSON": (lambda f: (f / "generation_config.json").write_text("{"), "generation_config"),
    "another family": (lambda f: edit_config(f, model_type="gpt2"), FAMILY_NAMES),
    "several modalities": (lambda f: edit_config(f, model_type="gemma3", text_config={}), "its text part can be"),
    "no family": (lambda f: edit_config(f, model_type=...), FAMILY_NAMES),
    "another activation": (lambda f: edit_config(f, hidden_act="relu"), "hidden_act 'relu'"),
    "biases missing": (lambda f: edit_config(f, attention_bias=True), "q_proj.bias is missing"),
    "biases of another family": (lambda f: edit_config(f, model_type="mistral", attention_bias=True), "attention_bias"),
    "MLP biases of another family": (lambda f: edit_config(f, model_type="mistral", mlp_bias=True), "mlp_bias"),
    "softcap of another family": (lambda f: edit_config(f, final_logit_softcapping=30.0), "final_logit_softcapping"),
    "softcap below zero": (
        lambda f: edit_config(f, **GEMMA2, final_logit_softcapping=-1.0),
        "final_logit_softcapping must be above 0",
    ),
    "no head_dim": (lambda f: edit_config(f, model_type="qwen3", head_dim=...), "head_dim is missing"),
    "window missing": (lambda f: edit_config(f, **GEMMA2, sliding_window=None), "sliding_window is off"),
    "window of nothing": (lambda f: edit_config(f, **GEMMA2, sliding_window=0), "sliding_window 0"),
    "layer types missing": (lambda f: edit_config(f, **GEMMA2, layer_types=["full_attention"]), "a list of 3"),
    "layer types unknown": (lambda f: edit_config(f, **GEMMA2, layer_types=["chunked_attention"] * 3), "a list of 3"),
    "both directions": (lambda f: edit_config(f, use_bidirectional_attention=True), "use_bidirectional"),
    "norms missing": (lambda f: edit_config(f, **GEMMA2), "pre_feedforward_layernorm.weight is missing"),
    "quantized": (lambda f: edit_config(f, quantization_config={"bits": 4}), "quantized"),
    "yarn": (lambda f: edit_config(f, rope_parameters={"rope_type": "yarn"}), "factor"),
    "dynamic rope": (lambda f: edit_config(f, rope_scaling={"type": "dynamic", "factor": 2.0}), "'dynamic'"),
    "rope is a list": (lambda f: edit_config(f, rope_parameters=[["rope_type", "linear"]]), "must be an object"),
    "rope by layer type": (
        lambda f: edit_config(f, rope_parameters={"full_attention": {"rope_theta": 1e6}}),
        "not supported for this family",
    ),
    "rope not by layer type": (
        lambda f: edit_config(f, **GEMMA2 | {"model_type": "gemma3_text"}, rope_parameters={"rope_theta": 1e6}),
        "must be keyed by full_attention and sliding_attention",
    ),
    "rope of base one": (lambda f: edit_config(f, rope_parameters={"rope_theta": 1.0}), "rope_theta 1.0"),
    "rope factor zero": (lambda f: edit_config(f, rope_scaling={"type": "linear", "factor": 0}), "rope factor 0.0"),
    "rope factors reversed": (
        lambda f: edit_config(
            f, rope_scaling={"type": "llama3", "factor": 8, "low_freq_factor": 4, "high_freq_factor": 1}
        ),
        "low_freq_factor 4.0",
    ),
    "rope without factor": (lambda f: edit_config(f, rope_parameters={"rope_type": "linear"}), "factor"),
    "partial rotary": (lambda f: edit_config(f, partial_rotary_factor=0.5), "partial_rotary_factor"),
    "odd head": (lambda f: edit_config(f, head_dim=9), "head_dim 9"),
    "uneven groups": (lambda f: edit_config(f, num_key_value_heads=4), "multiple"),
    "no vocabulary": (lambda f: edit_config(f, vocab_size=0), "vocab_size"),
    "eos is text": (lambda f: edit_config(f, eos_token_id="end"), "end"),
    "no heads": (lambda f: edit_config(f, num_attention_heads=...), "num_attention_heads"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_a_broken_folder_is_refused_with_the_reason(case: str, folder: Path) -> None:
    for file in folder.glob("generation_config.json"):
        file.unlink()  # so that the end-of-sequence cases see config.json
    break_it, reason = BROKEN[case]
    break_it(folder)
    with pytest.raises(ModelInvalid) as caught:
        load_runner_or_config(folder)
    assert reason in str(caught.value)
    assert isinstance(caught.value, RuntimeFault)


def load_runner_or_config(folder: Path) -> None:
    ModelConfig.from_folder(folder)  # first, as the runner does: sizes come from it
    load_runner(folder)


def test_both_spellings_of_rope_are_read() -> None:
    shared = {
        "model_type": "llama",
        "vocab_size": 8,
        "hidden_size": 8,
        "intermediate_size": 8,
        "num_attention_heads": 2,
        "num_hidden_layers": 1,
    }
    llama3 = {
        "rope_type": "llama3",
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 64,
    }
    old = ModelConfig.from_config({**shared, "rope_theta": 5e5, "rope_scaling": llama3}, {})
    new = ModelConfig.from_config({**shared, "rope_parameters": {"rope_theta": 5e5, **llama3}}, {})
    assert old == new
    (kind,) = old.kinds
    assert kind.rope == Rope(5e5, "llama3", 8.0, 64, 1.0, 4.0)
    plain = ModelConfig.from_config({**shared, "rope_scaling": {"type": "linear", "factor": 2.0}}, {})
    assert plain.kinds == (AttentionKind(Rope(10000.0, "linear", 2.0), None),)


def test_end_of_sequence_comes_from_the_generation_config_first(folder: Path) -> None:
    edit_config(folder, eos_token_id=[4, 9])
    (folder / "generation_config.json").unlink(missing_ok=True)
    assert ModelConfig.from_folder(folder).eos_token_ids == (4, 9)
    (folder / "generation_config.json").write_text('{"eos_token_id": 7}')
    assert ModelConfig.from_folder(folder).eos_token_ids == (7,)


def test_the_four_catalogue_models_are_supported() -> None:
    """Their published configurations (sizes as released), without their weights."""
    llama2 = {"model_type": "llama", "hidden_size": 4096, "intermediate_size": 11008, "num_attention_heads": 32}
    mistral = {**llama2, "model_type": "mistral", "intermediate_size": 14336, "num_key_value_heads": 8}
    gemma = {"model_type": "gemma", "hidden_size": 2048, "intermediate_size": 16384, "num_attention_heads": 8}
    rest = {"num_hidden_layers": 2, "vocab_size": 32000, "hidden_act": "silu", "rms_norm_eps": 1e-5}
    config = ModelConfig.from_config({**rest, **llama2, "rope_scaling": None, "pretraining_tp": 1}, {})
    assert (config.geometry.head_dim, config.kinds[0].rope, config.ties_embedding) == (128, Rope(10000.0), False)
    config = ModelConfig.from_config({**rest, **mistral, "rope_theta": 1e6, "sliding_window": None}, {})
    assert (config.kinds, config.geometry.num_kv_heads) == ((AttentionKind(Rope(1e6), None),), 8)
    names = {"hidden_act": "gelu", "hidden_activation": None, "head_dim": 256, "num_key_value_heads": 1}
    config = ModelConfig.from_config({**rest, **gemma, **names}, {})
    assert (config.activation, config.norm_offset, config.ties_embedding) == ("gelu_tanh", 1.0, True)
    assert config.embedding_scale == 2048**0.5
