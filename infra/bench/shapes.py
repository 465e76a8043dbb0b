"""The models and adapters of the benchmarks: sizes only. Weights are random, so nothing is downloaded.

`SMALL` has the width of SmolLM-135M and 12 of its 30 layers; `HALF` has every size of Qwen2.5-0.5B, as a Llama (no
biases), because then transformers, PEFT, llama.cpp and we all run it. Both tie embedding and output. `SMALL32` is small
with a file in fp32 whose weights no narrower type holds. `TINY` is for the tests.

Adapters change all seven linear maps of every layer. `DISTINCT` are eight of rank 16; `RANKS` are eight of mixed ranks.
"""

from dataclasses import dataclass, replace
from typing import Final

NUM_ADAPTERS: Final = 8
TARGETS: Final = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


@dataclass(frozen=True)
class Shape:
    """A Llama. Sizes in elements; `stored` is the type of its file."""

    name: str
    layers: int
    hidden: int
    heads: int
    kv_heads: int
    ffn: int
    vocab: int
    head_dim: int = 64
    max_positions: int = 4096
    rope_theta: float = 10_000.0
    rms_eps: float = 1e-5
    stored: str = "bfloat16"

    @property
    def num_weights(self) -> int:
        """Parameters, the shared embedding counted once."""
        query, key_value = self.heads * self.head_dim, self.kv_heads * self.head_dim
        attention = self.hidden * (2 * query + 2 * key_value)
        layer = attention + 3 * self.hidden * self.ffn + 2 * self.hidden
        return self.layers * layer + self.vocab * self.hidden + self.hidden

    @property
    def title(self) -> str:
        """For tables."""
        return f"{self.name} ({self.layers} layers, width {self.hidden}, {self.num_weights / 1e6:.0f} M)"


@dataclass(frozen=True)
class AdapterShape:
    """A LoRA adapter; `alpha` is twice the rank, as people train them."""

    name: str
    rank: int
    seed: int

    @property
    def alpha(self) -> int:
        return 2 * self.rank


TINY: Final = Shape("tiny", 2, 64, 4, 2, 96, 512, head_dim=16, max_positions=512)
SMALL: Final = Shape("small", 12, 576, 9, 3, 1536, 49_152)
SMALL32: Final = replace(SMALL, name="small32", stored="float32")
HALF: Final = Shape("half", 24, 896, 14, 2, 4864, 151_936, rope_theta=1_000_000.0, rms_eps=1e-6)
SHAPES: Final = {shape.name: shape for shape in (TINY, SMALL, SMALL32, HALF)}

DISTINCT: Final = tuple(AdapterShape(f"r16-{i}", 16, 100 + i) for i in range(NUM_ADAPTERS))
RANKS: Final = tuple(
    AdapterShape(f"mix{i}-r{rank}", rank, 200 + i) for i, rank in enumerate((4, 8, 8, 16, 16, 32, 32, 64))
)
ADAPTERS: Final = (*DISTINCT, *RANKS)
