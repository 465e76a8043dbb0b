"""The sizes that `steps.py` measures at, and the record of one line of its table."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple

import torch

from kernels.bench.clock import Operation
from kernels.triton_jit import cdiv

# More than the L2 cache of any card, several times.
ROTATED_BYTES: Final = 256 << 20
MOST_SETS: Final = 64


class Sizes(NamedTuple):
    """What is measured; toy sizes are for tests. heads: (heads, key/value heads, head size)."""

    heads: dict[str, tuple[int, int, int]]
    rows: tuple[int, ...]
    contexts: tuple[int, ...]
    prompts: tuple[int, ...]
    tokens: tuple[int, ...]
    hidden: int
    inner: int
    vocabularies: tuple[int, ...]
    rotated_bytes: int = ROTATED_BYTES


LLAMAS: Final = {"Llama-2-7B": (32, 32, 128), "Llama-3-8B": (32, 8, 128)}
SIZES: Final = {
    "full": Sizes(LLAMAS, (1, 8, 32, 64), (128, 1024, 4096), (128, 1024, 4096), (1, 32, 2048), 4096, 11008,
                  (32_000, 128_256)),
    "quick": Sizes(LLAMAS, (1, 32), (1024,), (1024, 4096), (1, 32), 4096, 11008, (32_000, 128_256)),
    "tiny": Sizes({"toy": (2, 1, 16)}, (2,), (40,), (70,), (3,), 32, 48, (300,), 1),
}  # fmt: skip


@dataclass
class Work:
    """One line of the table. results: of ours and of theirs, compared before anything is timed."""

    metric: str
    bytes: int
    ours: Sequence[Operation]
    theirs: Sequence[Operation] = ()
    peer: str = ""
    flops: int = 0
    results: tuple[Callable[[], torch.Tensor], Callable[[], torch.Tensor]] | None = None


def sets_of(size: int, rotated: int) -> int:
    """How many sets of data of this size overflow the cache."""
    return max(1, min(MOST_SETS, cdiv(rotated, size)))
