"""Loading holds the model once: what is read comes from mapped files, whatever their number and dtype."""

import ctypes
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from transformers import LlamaConfig

from runtime.layers.kv_cache import KVCache
from runtime.models.config import ModelConfig
from runtime.models.decoder import load_decoder

LAYERS, HIDDEN, WIDE, VOCAB = 4, 512, 1408, 8000


def write_folder(folder: Path, dtype: torch.dtype) -> None:
    """A Llama of about 17 million random weights."""
    sizes = {"q": (HIDDEN, HIDDEN), "k": (HIDDEN, HIDDEN), "v": (HIDDEN, HIDDEN), "o": (HIDDEN, HIDDEN)}
    mlp = {"gate": (WIDE, HIDDEN), "up": (WIDE, HIDDEN), "down": (HIDDEN, WIDE)}
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (VOCAB, HIDDEN), "model.norm.weight": (HIDDEN,)}
    for layer in range(LAYERS):
        at = f"model.layers.{layer}"
        shapes |= {f"{at}.self_attn.{name}_proj.weight": shape for name, shape in sizes.items()}
        shapes |= {f"{at}.mlp.{name}_proj.weight": shape for name, shape in mlp.items()}
        shapes |= {f"{at}.{name}_layernorm.weight": (HIDDEN,) for name in ("input", "post_attention")}
    save_file({name: torch.randn(shape).to(dtype) for name, shape in shapes.items()}, folder / "model.safetensors")
    LlamaConfig(
        hidden_size=HIDDEN,
        intermediate_size=WIDE,
        num_hidden_layers=LAYERS,
        num_attention_heads=8,
        num_key_value_heads=8,
        vocab_size=VOCAB,
        tie_word_embeddings=True,
    ).save_pretrained(folder)


def anonymous_bytes() -> int:
    """Memory of this process that no file backs."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("RssAnon")).split()[1]) * 1024


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="memory is measured through /proc")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_no_second_copy_of_the_weights_is_held(dtype: torch.dtype, tmp_path: Path) -> None:
    write_folder(tmp_path, dtype)
    config, cpu = ModelConfig.from_folder(tmp_path), torch.device("cpu")
    cache = KVCache(config.geometry, 1, 1, torch.float32, cpu)
    ctypes.CDLL(None).malloc_trim(0)  # or the weights would go where the written ones were
    before, peak = anonymous_bytes(), 0

    def progress(_: float) -> None:
        nonlocal peak
        peak = max(peak, anonymous_bytes())

    decoder = load_decoder(tmp_path, config, cache, torch.float32, cpu, progress)
    weights = decoder.num_parameters * 4
    assert weights > 60_000_000
    # A matrix stands twice while it is packed, and the allocator keeps the room of one that is as small as here.
    largest = VOCAB * HIDDEN * 4
    assert 0.8 * weights < peak - before < 1.1 * weights + 2 * largest < 1.7 * weights


CHILD = """
import sys
from pathlib import Path
from runtime.runner import TorchRunner
options = {"device": "cpu", "threads": 1, "kv_bytes": 1 << 20, "block_tokens": 16, "adapter_rows": 8, "max_slots": 1}
def peak():
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("VmHWM")).split()[1]) * 1024
before = peak()
runner = TorchRunner.load(Path(sys.argv[1]), dtype="bfloat16", **options)
print(peak() - before, runner.num_parameters * 2)
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="memory is measured through /proc")
def test_a_process_that_loads_never_grows_by_twice_the_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By the kernel's own high-water mark, with what is mapped of the files."""
    for name, value in (("LAYERS", 8), ("HIDDEN", 1024), ("WIDE", 2816), ("VOCAB", 16000)):
        monkeypatch.setattr(sys.modules[__name__], name, value)
    write_folder(tmp_path, torch.bfloat16)
    done = subprocess.run([sys.executable, "-c", CHILD, str(tmp_path)], capture_output=True, text=True, check=True)
    grown, weights = map(int, done.stdout.split())
    assert weights > 230_000_000
    assert 0.9 * weights < grown < 1.4 * weights, grown / weights
