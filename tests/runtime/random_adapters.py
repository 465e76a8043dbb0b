"""Random adapters written straight into a runner's pool."""

import io

import numpy as np

from runtime.runner import TorchRunner
from storage.geometry import MODULES
from storage.packed import LoraMatrices, read_packed, write_packed


def write_random_adapter(runner: TorchRunner, slot: int, row_offset: int, rank: int) -> None:
    """All modules but one of each third layer, with numbers large enough to matter."""
    rng, geometry = np.random.default_rng(slot), runner.geometry
    matrices = [
        LoraMatrices(
            layer,
            module,
            0.5 + slot,
            rng.standard_normal((rank, geometry.shape(module)[1]), np.float32) * 0.2,
            rng.standard_normal((geometry.shape(module)[0], rank), np.float32) * 0.2,
        )
        for layer in range(geometry.num_layers)
        for index, module in enumerate(MODULES)
        if (layer + index) % 3 != slot % 3
    ]
    out = io.BytesIO()
    write_packed(out, geometry, "float32", matrices)
    runner.write_adapter(slot, row_offset, read_packed(out.getvalue()), 0, geometry.num_layers)
