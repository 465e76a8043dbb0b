"""The device is one that the kernels are made for."""

import torch

from kernels.triton_jit import Number, Pointer, constexpr, jit, runs_kernel, tl


@jit
def _double_kernel(x: Pointer, y: Pointer, count: Number, BLOCK: constexpr) -> None:
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.store(y + at, tl.load(x + at, mask=at < count, other=0.0) * 2, mask=at < count)


def test_the_device_is_ampere_or_newer() -> None:
    assert torch.cuda.get_device_capability() >= (8, 0)


def test_a_kernel_runs_on_it() -> None:
    x = torch.arange(1000, dtype=torch.float32, device="cuda")
    y = torch.zeros_like(x)
    assert runs_kernel(x)
    _double_kernel[(8,)](x, y, 1000, BLOCK=128)
    assert torch.equal(y, 2 * x)
