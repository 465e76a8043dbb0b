"""Loading holds the model once: what is read comes from mapped files, whatever their number and dtype."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from transformers import LlamaConfig

LAYERS, HIDDEN, WIDE, VOCAB = 8, 1024, 2816, 16_000


def write_folder(folder: Path, dtype: torch.dtype) -> None:
    """A Llama of about 120 million random weights."""
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


CHILD = """
import sys
from pathlib import Path
from runtime.models.cpu_program import CpuProgram  # Numba's own memory is not what is measured
from runtime.runner import TorchRunner
options = {"device": "cpu", "threads": 1, "kv_bytes": 1 << 20, "block_tokens": 16, "adapter_rows": 8, "max_slots": 1}
def peak():
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("VmHWM")).split()[1]) * 1024
before = peak()
runner = TorchRunner.load(Path(sys.argv[1]), dtype=sys.argv[2], **options)
print(peak() - before, runner.num_parameters)
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="memory is measured through /proc")
@pytest.mark.parametrize(
    ("stored", "dtype", "itemsize"),
    [(torch.bfloat16, "bfloat16", 2), (torch.bfloat16, "float32", 2), (torch.float32, "float32", 4)],
)
def test_a_process_that_loads_never_grows_by_twice_the_weights(
    stored: torch.dtype, dtype: str, itemsize: int, tmp_path: Path
) -> None:
    """By the kernel's own high-water mark, with what is mapped of the files."""
    write_folder(tmp_path, stored)
    done = subprocess.run(
        [sys.executable, "-c", CHILD, str(tmp_path), dtype], capture_output=True, text=True, check=True
    )
    grown, parameters = map(int, done.stdout.split())
    weights = parameters * itemsize
    assert weights > 230_000_000
    assert 0.9 * weights < grown < 1.4 * weights, grown / weights
