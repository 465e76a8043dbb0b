"""The tensors of a Hugging Face folder, from the files that `shards.py` finds.

The one file that knows safetensors. Each tensor is copied from a mapping of its own straight to its place in the
decoder's (often fused) weights, converted on the way, so loading never holds a second copy of the model: a mapping that
lasted would keep all that was read of the file in this process. A tensor that no one asked for is an error, because a
decoder that ignores weights gives wrong answers.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

import torch
from safetensors import SafetensorError, safe_open

from runtime.errors import ModelInvalid
from runtime.shards import INDEX_FILE, shard_names

STORED_DTYPES: Final = (torch.float32, torch.float16, torch.bfloat16)

# Buffers that old checkpoints carry and that follow from the configuration.
_DERIVED_SUFFIX: Final = ".rotary_emb.inv_freq"


class Checkpoint:
    """The tensors of one folder by name. Use `open_checkpoint`; `finish` says whether every tensor was used."""

    def __init__(self, folder: Path, files: dict[str, Path], progress: Callable[[float], None] | None) -> None:
        self._folder = folder
        self._files = files
        self._left = {name for name in files if not name.endswith(_DERIVED_SUFFIX)}
        self._total = max(1, len(self._left))
        self._progress = progress

    def __contains__(self, name: str) -> bool:
        return name in self._files

    def fused(
        self, names: Sequence[str], shapes: Sequence[tuple[int, ...]], dtype: torch.dtype, device: torch.device
    ) -> torch.Tensor:
        """The named tensors stacked along their first dimension, in `dtype` on `device`.

        Raises ModelInvalid when one is missing or has another shape or a dtype that is not a plain float.
        """
        rows = sum(shape[0] for shape in shapes)
        out = torch.empty((rows, *shapes[0][1:]), dtype=dtype, device=device)
        row = 0
        for name, shape in zip(names, shapes, strict=True):
            out[row : row + shape[0]] = self._read(name, shape)
            row += shape[0]
        return out

    def tensor(self, name: str, shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> torch.Tensor:
        """One tensor, as `fused`."""
        return self.fused((name,), (shape,), dtype, device)

    def skip(self, name: str) -> None:
        """Says that a tensor is known and not needed, whether or not it is there."""
        self._left.discard(name)

    def finish(self) -> None:
        """Raises ModelInvalid when tensors are left that nobody asked for."""
        if self._left:
            names = ", ".join(sorted(self._left)[:5])
            raise ModelInvalid(f"{self._folder}: {len(self._left)} tensors that this decoder does not use: {names}")
        if self._progress:
            self._progress(1.0)

    def _read(self, name: str, shape: tuple[int, ...]) -> torch.Tensor:
        file = self._files.get(name)
        if file is None:
            raise ModelInvalid(f"{self._folder}: tensor {name} is missing")
        try:
            with safe_open(file, framework="pt", device="cpu") as opened:
                stored: torch.Tensor = opened.get_tensor(name)
        except (SafetensorError, OSError) as error:
            raise ModelInvalid(f"{self._folder}: tensor {name} cannot be read: {error}") from error
        if tuple(stored.shape) != shape:
            raise ModelInvalid(f"{self._folder}: tensor {name} has shape {tuple(stored.shape)}, expected {shape}")
        if stored.dtype not in STORED_DTYPES:
            raise ModelInvalid(f"{self._folder}: tensor {name} is {stored.dtype}; use float32, float16 or bfloat16")
        self._left.discard(name)
        if self._progress:
            self._progress((self._total - len(self._left)) / self._total)
        return stored


def open_checkpoint(folder: Path, progress: Callable[[float], None] | None = None) -> Checkpoint:
    """Reads the headers of every file of the folder. `progress` gets the fraction of tensors read, 0 to 1.

    Raises ModelInvalid when a file is missing, truncated or not safetensors, or when the index contradicts the files.
    """
    shards, wanted = shard_names(folder)
    files: dict[str, Path] = {}
    for shard in shards:
        try:
            with safe_open(folder / shard, framework="pt", device="cpu") as file:
                names = list(file.keys())
        except (SafetensorError, OSError) as error:
            raise ModelInvalid(f"{folder / shard} is not a readable safetensors file: {error}") from error
        for name in names:
            if name in files:
                raise ModelInvalid(f"{folder}: tensor {name} is in two files")
            files[name] = folder / shard
    missing = sorted(wanted - files.keys())
    if missing:
        raise ModelInvalid(f"{folder}: {INDEX_FILE} names tensors that no file holds: {', '.join(missing[:5])}")
    return Checkpoint(folder, files, progress)
