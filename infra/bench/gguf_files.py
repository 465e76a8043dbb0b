"""A Hugging Face folder (Llama) or a PEFT folder -> a GGUF file, for llama.cpp. Runs in the peers' environment.

    python -m infra.bench.gguf_files model <folder> <type> <out>      type: f16, bf16 or f32
    python -m infra.bench.gguf_files adapter <folder> <type> <out> --heads 9 --kv-heads 3

llama.cpp rotates neighbouring pairs of a head where Hugging Face rotates its two halves, so the rows of q and k (and
of their lora_B) are interleaved here. Vectors stay f32, as llama.cpp wants them. The vocabulary has no texts: token
ids go in and out. That the result is the same model is shown by equal greedy tokens in f32: `single.same` of `make
bench-runtime`, and a test where llama.cpp is built.
"""

import argparse
import json
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import numpy.typing as npt

from infra.bench.safetensors_file import read_tensors

NAMES = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
}
FILE_TYPES = {
    "f32": gguf.LlamaFileType.ALL_F32,
    "f16": gguf.LlamaFileType.MOSTLY_F16,
    "bf16": gguf.LlamaFileType.MOSTLY_BF16,
}


def write_model(folder: Path, kind: str, out: Path) -> None:
    """The base model."""
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    heads, kv_heads, head_dim = config["num_attention_heads"], config["num_key_value_heads"], config["head_dim"]
    writer = gguf.GGUFWriter(out, "llama")
    writer.add_name(folder.parent.name)
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(heads)
    writer.add_head_count_kv(kv_heads)
    writer.add_key_length(head_dim)
    writer.add_value_length(head_dim)
    writer.add_rope_dimension_count(head_dim)
    writer.add_rope_freq_base(config["rope_theta"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_vocab_size(config["vocab_size"])
    writer.add_file_type(FILE_TYPES[kind])
    writer.add_tokenizer_model("none")
    tops = {"model.embed_tokens.weight": "token_embd.weight", "model.norm.weight": "output_norm.weight"}
    for name, values in read_tensors(folder / "model.safetensors"):
        if name in tops:
            _add(writer, tops[name], values, kind)
            continue
        layer, _, module = name.removeprefix("model.layers.").removesuffix(".weight").partition(".")
        _add(writer, f"blk.{layer}.{NAMES[module]}.weight", _interleaved(module, values, heads, kv_heads), kind)
    _write(writer)


def write_adapter(folder: Path, kind: str, out: Path, heads: int, kv_heads: int) -> None:
    """A LoRA adapter."""
    config = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))
    writer = gguf.GGUFWriter(out, "llama")
    writer.add_type(gguf.GGUFType.ADAPTER)
    writer.add_string(gguf.Keys.Adapter.TYPE, "lora")
    writer.add_float32(gguf.Keys.Adapter.LORA_ALPHA, float(config["lora_alpha"]))
    for name, values in read_tensors(folder / "adapter_model.safetensors"):
        layer, _, rest = name.removeprefix("base_model.model.model.layers.").partition(".")
        module, _, half = rest.removesuffix(".weight").rpartition(".")
        if half == "lora_B":
            values = _interleaved(module, values, heads, kv_heads)
        _add(writer, f"blk.{layer}.{NAMES[module]}.weight.{half.lower()}", values, kind)
    _write(writer)


def _interleaved(module: str, values: npt.NDArray[Any], heads: int, kv_heads: int) -> npt.NDArray[Any]:
    """Rows of q and k: (half, pair) of a head becomes (pair, half)."""
    count = {"self_attn.q_proj": heads, "self_attn.k_proj": kv_heads}.get(module)
    if count is None:
        return values
    return values.reshape(count, 2, -1, values.shape[1]).swapaxes(1, 2).reshape(values.shape)


def _add(writer: Any, name: str, values: npt.NDArray[Any], kind: str) -> None:
    if values.ndim == 1 or kind == "f32":
        writer.add_tensor(name, np.ascontiguousarray(values))
    elif kind == "f16":
        writer.add_tensor(name, values.astype(np.float16))
    else:
        raw = gguf.quants.quantize(values, gguf.GGMLQuantizationType.BF16)
        writer.add_tensor(name, raw, raw_dtype=gguf.GGMLQuantizationType.BF16)


def _write(writer: Any) -> None:
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("what", choices=("model", "adapter"))
    parser.add_argument("folder", type=Path)
    parser.add_argument("kind", choices=tuple(FILE_TYPES))
    parser.add_argument("out", type=Path)
    parser.add_argument("--heads", type=int, default=0)
    parser.add_argument("--kv-heads", type=int, default=0)
    options = parser.parse_args()
    partial = options.out.with_suffix(".part")
    if options.what == "model":
        write_model(options.folder, options.kind, partial)
    else:
        write_adapter(options.folder, options.kind, partial, options.heads, options.kv_heads)
    partial.rename(options.out)
