"""What a benchmark's process needs of its device: name, copy speed, and Triton's interpreter where it is a CPU."""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch

from kernels.bench.clock import copy_bandwidth
from kernels.triton_jit import interpreting


@contextmanager
def opened(name: str) -> Iterator[torch.device]:
    """Within it kernels run on this device."""
    device = torch.device(name)
    with nullcontext() if device.type == "cuda" else interpreting(), torch.inference_mode():
        yield device


def about(device: torch.device) -> dict[str, Any]:
    """For the first line of a child."""
    name = torch.cuda.get_device_name() if device.type == "cuda" else "interpreter"
    found = {"about": {"device": name, "bandwidth": copy_bandwidth(device)}}
    if device.type == "cuda":
        torch.cuda.empty_cache()  # what was copied is gone, and its memory free to be counted
    return found


def free_bytes(device: torch.device) -> int:
    """Of the device's memory."""
    return torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else 1 << 30


def finish(device: torch.device) -> None:
    """Waits for all that was started."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
