"""Where the numbers of a step lie in one buffer of bytes, so that they reach a device in one copy.

    places seeds | ids sources positions | contexts rows tables | tiles starts counts ... | sampled ... | lora

Every part begins at a multiple of 16 bytes: kernels are compiled for pointers that do. A layout follows from the step's
sizes alone; the host writes through numpy views of its copy what the device reads through tensors of its own.
"""

from typing import Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from kernels.segments import TILE_WORDS
from kernels.triton_jit import cdiv

_ALIGNMENT: Final = 16
_TORCH: Final = {"i8": torch.int64, "i4": torch.int32, "f4": torch.float32}


class StepSizes(NamedTuple):
    """tokens of the step; rows with one token, chunks with more and their tiles; sampled tokens; room for tiles of
    LoRA. indexed: whether rows and sampled tokens are named; otherwise row i and sample i are token i.

    table_blocks: the width of block tables.
    """

    tokens: int
    rows: int
    chunks: int
    chunk_tiles: int
    sampled: int
    lora_tiles: int
    indexed: bool
    table_blocks: int


class _Part(NamedTuple):
    name: str
    dtype: str
    shape: tuple[int, ...]
    offset: int
    num_bytes: int


class StepLayout:
    """The parts of a step of these sizes."""

    def __init__(self, sizes: StepSizes) -> None:
        self.sizes = sizes
        self._parts: list[_Part] = []
        self.num_bytes = 0
        tokens, rows, chunks, chunk_tiles, sampled, lora_tiles, indexed, width = sizes
        self._add("places", "i8", tokens)
        self._add("seeds", "i8", sampled)
        for name in ("ids", "sources", "positions"):
            self._add(name, "i4", tokens)
        self._add("contexts", "i4", rows)
        self._add("tables", "i4", rows, width)
        if indexed:
            self._add("rows", "i4", rows)
            self._add("sampled", "i4", sampled)
        self._add("chunk_tiles", "i4", chunk_tiles, 2)
        for name in ("chunk_starts", "chunk_counts", "chunk_contexts"):
            self._add(name, "i4", chunks)
        self._add("chunk_tables", "i4", chunks, width)
        for name in ("top_k", "draw_positions"):
            self._add(name, "i4", sampled)
        for name in ("temperature", "top_p", "min_p"):
            self._add(name, "f4", sampled)
        self._add("lora", "i4", TILE_WORDS, lora_tiles)

    def arrays(self, buffer: npt.NDArray[np.uint8]) -> dict[str, npt.NDArray[Any]]:
        """The host's views of a buffer of `num_bytes` or more."""
        return {
            part.name: buffer[part.offset : part.offset + part.num_bytes].view(part.dtype).reshape(part.shape)
            for part in self._parts
        }

    def tensors(self, buffer: torch.Tensor) -> dict[str, torch.Tensor]:
        """The device's views of its buffer (uint8)."""
        return {
            part.name: buffer[part.offset : part.offset + part.num_bytes].view(_TORCH[part.dtype]).view(part.shape)
            for part in self._parts
        }

    def _add(self, name: str, dtype: str, *shape: int) -> None:
        num_bytes = int(np.prod(shape)) * int(dtype[1])
        self._parts.append(_Part(name, dtype, shape, self.num_bytes, num_bytes))
        self.num_bytes += cdiv(num_bytes, _ALIGNMENT) * _ALIGNMENT
