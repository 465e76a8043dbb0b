"""Random weights and adapters, made where they are used: a bench needs the shapes of a model, not the model.

Matrices have a variance of 1 / inputs and norms are 1, so that numbers stay of one size through all layers and nothing
is decided by overflow.
"""

from collections.abc import Sequence

import torch

from runtime.layers.adapter_pool import AdapterPool
from runtime.layers.kv_cache import KVCache
from runtime.models.config import ModelConfig
from runtime.models.decoder import EMBEDDING, Decoder, build_decoder
from storage.geometry import MODULES
from storage.packed import Packed, PackedEntry, PackedHeader

_ADAPTER_SIZE = 0.3


def random_decoder(config: ModelConfig, cache: KVCache, dtype: torch.dtype, device: torch.device, seed: int) -> Decoder:
    """A decoder of this shape; the same weights for the same seed on the same kind of device."""
    return build_decoder(_RandomWeights(config.norm_offset, seed, device), config, cache, dtype, device)


class _RandomWeights:
    """Fulfils `runtime.models.decoder.Weights`."""

    def __init__(self, norm_offset: float, seed: int, device: torch.device) -> None:
        self._norm_offset = norm_offset
        self._generator = torch.Generator(device).manual_seed(seed)

    def fused(
        self, names: Sequence[str], shapes: Sequence[tuple[int, ...]], dtype: torch.dtype, device: torch.device
    ) -> torch.Tensor:
        """Of the sum of the shapes' first sizes; see `Checkpoint.fused`."""
        out = torch.empty((sum(shape[0] for shape in shapes), *shapes[0][1:]), dtype=dtype, device=device)
        if out.dim() == 1:
            return out.fill_(0.0 if names[0].endswith(".bias") else 1.0 - self._norm_offset)
        deviation = 1.0 if names[0] == EMBEDDING else shapes[0][1] ** -0.5
        return out.normal_(0.0, deviation, generator=self._generator)

    def tensor(self, name: str, shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> torch.Tensor:
        """One tensor."""
        return self.fused((name,), (shape,), dtype, device)

    def skip(self, name: str) -> None:
        """Nothing is left over."""


def fill_with_random(pool: AdapterPool, slot: int, row_offset: int, rank: int, seed: int) -> None:
    """Makes a slot READY whose adapter has every module. Launched in the current queue."""
    layers = range(pool.geometry.num_layers)
    entries = tuple(PackedEntry(layer, module, rank, 1.0, 0, 0) for layer in layers for module in MODULES)
    rows = pool.reserve(
        slot, row_offset, Packed(PackedHeader(pool.geometry, "float32", rank, 0, entries), memoryview(b""))
    )
    generator = torch.Generator(pool.device).manual_seed(seed)
    mine = slice(rows.offset, rows.offset + rows.rank)
    for group in pool.stacked:
        deviation = group.a.shape[3] ** -0.5
        group.a[:, :, mine].normal_(0.0, deviation, generator=generator)
        group.b[:, mine].normal_(0.0, _ADAPTER_SIZE * rank**-0.5, generator=generator)
    pool.scaling[:, slot] = 1.0
    pool.complete(slot)
