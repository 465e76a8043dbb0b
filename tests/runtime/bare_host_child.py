"""A tiny base, an adapter, and an engine on them: what a bare GPU host must be able to run. Prints the answers.

Only torch, safetensors, numpy and the standard library, beside our own packages.

    python -m tests.runtime.bare_host_child FOLDER
"""

import io
import json
import sys
import time
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from safetensors.torch import save_file

from kernels.triton_jit import interpreting
from runtime.adapter import Way
from runtime.device_runner import DeviceRunner, DeviceSizes
from runtime.engine import Engine, EngineLimits
from runtime.protocol import AdapterRef, ModelInfo, SamplingParams, Submit
from runtime.runner import TorchRunner
from storage.geometry import MODULES, Geometry
from storage.packed import LoraMatrices, Packed, read_packed, write_packed

CONFIG: dict[str, Any] = {
    "model_type": "llama",
    "vocab_size": 97,
    "hidden_size": 24,
    "intermediate_size": 40,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "rms_norm_eps": 1e-5,
    "tie_word_embeddings": False,
}


def make_folder(folder: Path) -> None:
    """A Hugging Face folder of random weights, large enough that no argmax is a near tie."""
    generator, geometry = torch.Generator().manual_seed(5), Geometry.from_config(CONFIG)
    words = (CONFIG["vocab_size"], geometry.hidden_size)
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": words, "lm_head.weight": words}
    for layer in range(geometry.num_layers):
        for module in MODULES:
            block = "self_attn" if module[0] in "qkvo" else "mlp"
            shapes[f"model.layers.{layer}.{block}.{module}.weight"] = geometry.shape(module)
    tensors = {name: torch.randn(shape, generator=generator) * 0.4 for name, shape in shapes.items()}
    norms = [f"model.layers.{layer}.{name}.weight" for layer in range(geometry.num_layers)
             for name in ("input_layernorm", "post_attention_layernorm")]  # fmt: skip
    tensors |= {name: torch.ones(geometry.hidden_size) for name in (*norms, "model.norm.weight")}
    save_file(tensors, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(CONFIG), encoding="utf-8")


def make_adapter(geometry: Geometry, rank: int, seed: int) -> Packed:
    """All modules, large enough to change what is said."""
    rng = np.random.default_rng(seed)
    matrices = [
        LoraMatrices(
            layer,
            module,
            0.7,
            rng.standard_normal((rank, geometry.shape(module)[1]), np.float32) * 0.2,
            rng.standard_normal((geometry.shape(module)[0], rank), np.float32) * 0.2,
        )
        for layer in range(geometry.num_layers)
        for module in MODULES
    ]
    out = io.BytesIO()
    write_packed(out, geometry, "float32", matrices)
    return read_packed(out.getvalue())


class AtOnce:
    """`Loads` that remembers what it was asked for."""

    def __init__(self) -> None:
        self.asked: list[AdapterRef] = []

    def start(self, adapter: AdapterRef) -> None:
        self.asked.append(adapter)

    def stop(self, digest: str) -> None:
        """Nothing is on its way."""

    def warm(self, adapter: AdapterRef) -> None:
        """Everything is in memory."""

    def release(self, digest: str) -> None:
        """The bytes stay."""

    def forget(self, digest: str) -> None:
        """The bytes stay."""


def answers(folder: Path) -> list[list[int]]:
    """Greedy answers of the base, an adapter, and both drawn, from one engine."""
    runner = TorchRunner.load(
        folder, device="cpu", dtype="float32", threads=1, kv_bytes=1 << 20, block_tokens=8, adapter_rows=32
    )
    return answers_of(runner)


def answers_of_device(folder: Path) -> list[list[int]]:
    """The same through the device's path, interpreted. TRITON_INTERPRET must be set."""
    # Programs run one after the other here.
    with interpreting(), patch("kernels.lora_shrink._PROGRAMS", 24), patch("kernels.lora_shrink._WORKERS", 4):
        sizes = DeviceSizes(1 << 20, block_tokens=8, adapter_rows=32, max_slots=8, max_rows=4)
        return answers_of(DeviceRunner.load(folder, sizes, device="cpu", dtype="float32"), max_tokens=4)


def answers_of(runner: TorchRunner | DeviceRunner, max_tokens: int = 12) -> list[list[int]]:
    """From one engine; runners of other kinds may draw other words where they are drawn."""
    model = ModelInfo("tiny", "float32", "cpu", runner.num_parameters, runner.vocab_size, 128, 32, ())
    loads = AtOnce()
    engine = Engine(runner, model, EngineLimits(runner.num_blocks, 8, 32), loads, time.monotonic)
    adapter = AdapterRef("digest", "key", 1, 4, "id")
    for number in range(4):
        sampling = SamplingParams(max_tokens=max_tokens, temperature=0.0 if number < 2 else 0.8, top_p=0.9, seed=number)
        engine.submit(1, Submit(number, "a", (3, 1, 4, 1, 5 + number), sampling, adapter if number % 2 else None))
    said: list[list[int]] = [[] for _ in range(4)]
    while engine.num_live:
        for ref in loads.asked:
            engine.adapter_loaded(ref.digest, make_adapter(runner.geometry, 4, 1), Way())
        loads.asked.clear()
        for item in engine.step().outputs:
            assert item.output.failure is None, item.output.failure
            said[item.output.sequence_id] += item.output.token_ids
    return said


if __name__ == "__main__":
    print(json.dumps(answers(Path(sys.argv[1]))))
