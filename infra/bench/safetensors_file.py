"""Reads a safetensors file of ours into float32 arrays, one at a time. numpy only: the peers have no torch."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt


def read_tensors(path: Path) -> Iterator[tuple[str, npt.NDArray[Any]]]:
    """(name, values as float32) of every tensor; BF16 and F32 only. Raises ValueError for other types."""
    data = np.memmap(path, np.uint8, "r")
    start = 8 + int.from_bytes(data[:8].tobytes(), "little")
    for name, entry in json.loads(data[8:start].tobytes()).items():
        if name == "__metadata__":
            continue
        begin, end = entry["data_offsets"]
        raw = np.ascontiguousarray(data[start + begin : start + end])
        if entry["dtype"] == "BF16":
            values = (raw.view("<u2").astype(np.uint32) << 16).view(np.float32)
        elif entry["dtype"] == "F32":
            values = raw.view("<f4")
        else:
            raise ValueError(f"{path}: {name} is {entry['dtype']}; only BF16 and F32 are read")
        yield name, values.reshape(entry["shape"])
