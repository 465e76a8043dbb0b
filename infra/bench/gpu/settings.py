"""What the model benchmarks measure with: Llama-2-7B's shapes on a GPU, and toy sizes for tests on a CPU.

Weights are random and made on the device. Positions go a little beyond Llama's 4096, so that a prompt of 4096 tokens
leaves room for an answer. Bytes are those that a step must move at least; the floor is what the card's own copy speed,
measured in the same process, needs for them.
"""

from dataclasses import dataclass
from typing import Any, Final

import torch

from storage.geometry import MODULES, Geometry


@dataclass(frozen=True)
class Setting:
    """context: tokens before the decode steps that are measured. batches, ranks, distinct: the grid of decode.

    warm: steps that do not count; the first of a shape runs eagerly and compiles, the second is captured. rounds:
    repetitions in turns. window: steps beside a burst of loads. zipf_counts: registered adapters.
    zipf_turns: so many times the sequences that run at once are served, after as many that are not counted.
    """

    name: str
    config: dict[str, Any]
    dtype: str
    block_tokens: int
    context: int
    batches: tuple[int, ...]
    ranks: tuple[int, ...]
    distinct: tuple[int, ...]
    warm: int
    steps: int
    rounds: int
    prompts: tuple[int, ...]
    step_tokens: int
    load_running: int
    load_prompt: int
    load_counts: tuple[int, ...]
    load_rank: int
    window: int
    zipf_counts: tuple[int, ...]
    zipf_running: int
    zipf_turns: int
    zipf_prompt: int
    zipf_tokens: int
    pool_adapters: int

    @property
    def geometry(self) -> Geometry:
        """Of the base."""
        return Geometry.from_config(self.config)

    @property
    def torch_dtype(self) -> torch.dtype:
        """Of weights, cache and adapters."""
        found: torch.dtype = getattr(torch, self.dtype)
        return found

    @property
    def itemsize(self) -> int:
        """Bytes of one number."""
        return self.torch_dtype.itemsize


LLAMA: Final = Setting(
    name="Llama-2-7B",
    config={
        "model_type": "llama", "architectures": ["LlamaForCausalLM"], "hidden_size": 4096, "intermediate_size": 11008,
        "num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 32, "head_dim": 128,
        "vocab_size": 32_000, "max_position_embeddings": 4352, "rms_norm_eps": 1e-5, "hidden_act": "silu",
        "tie_word_embeddings": False, "bos_token_id": 1, "eos_token_id": 2,
    },
    dtype="bfloat16", block_tokens=16, context=512,
    batches=(1, 8, 32, 64), ranks=(16, 8, 64), distinct=(1, 8, 32), warm=4, steps=16, rounds=3,
    prompts=(128, 1024, 4096), step_tokens=2048,
    load_running=32, load_prompt=128, load_counts=(1, 8, 64), load_rank=16, window=40,
    zipf_counts=(1, 10, 100, 1000), zipf_running=32, zipf_turns=4, zipf_prompt=64, zipf_tokens=64, pool_adapters=112,
)  # fmt: skip
TOY: Final = Setting(
    name="toy",
    config={
        "model_type": "llama", "architectures": ["LlamaForCausalLM"], "hidden_size": 16, "intermediate_size": 32,
        "num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 16,
        "vocab_size": 40, "max_position_embeddings": 96, "rms_norm_eps": 1e-5, "hidden_act": "silu",
        "tie_word_embeddings": False, "bos_token_id": 1, "eos_token_id": 2,
    },
    dtype="float32", block_tokens=8, context=9,
    batches=(2,), ranks=(2,), distinct=(2,), warm=1, steps=1, rounds=1,
    prompts=(5,), step_tokens=32,
    load_running=1, load_prompt=3, load_counts=(1,), load_rank=2, window=1,
    zipf_counts=(1, 2), zipf_running=1, zipf_turns=1, zipf_prompt=3, zipf_tokens=2, pool_adapters=3,
)  # fmt: skip


def setting_of(device: str) -> Setting:
    """By the name of a device."""
    return LLAMA if device == "cuda" else TOY


def rank_row_bytes(setting: Setting) -> int:
    """One rank row of an adapter of all modules, over all layers."""
    geometry = setting.geometry
    return geometry.num_layers * setting.itemsize * sum(sum(geometry.shape(module)) for module in MODULES)


def weight_bytes(setting: Setting) -> int:
    """What a decode step reads of the base: all linear maps and the head, once."""
    geometry = setting.geometry
    widths = [geometry.shape(module) for module in MODULES]
    linear = geometry.num_layers * sum(rows * columns for rows, columns in widths)
    return setting.itemsize * (linear + int(setting.config["vocab_size"]) * geometry.hidden_size)


def cell_bytes(setting: Setting) -> int:
    """Keys and values of one token, over all layers."""
    geometry = setting.geometry
    return 2 * geometry.num_layers * geometry.num_kv_heads * geometry.head_dim * setting.itemsize


def step_bytes(setting: Setting, batch: int, context: int, adapter_rows: int) -> int:
    """One decode step: weights and each adapter of the step once (adapter_rows: their ranks added up), every row's
    keys and values read, and its own written."""
    cache = batch * (context + 1) * cell_bytes(setting)
    return weight_bytes(setting) + cache + adapter_rows * rank_row_bytes(setting)
