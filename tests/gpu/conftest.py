"""Tier 4. Without a CUDA device, or where kernels are interpreted, every test here is skipped and says why.

Kernels are imported late: this file may be read before the root conftest has decided about the interpreter.
"""

from pathlib import Path

import pytest


def _why_not() -> str:
    import torch

    from kernels.triton_jit import HAS_TRITON, IS_INTERPRETED

    if not torch.cuda.is_available():
        return "no CUDA device"
    if not HAS_TRITON:
        return "Triton is not installed"
    return "kernels are interpreted in this run: pytest -m gpu tests/gpu" if IS_INTERPRETED else ""


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    ours = [item for item in items if item.path.is_relative_to(Path(__file__).parent)]
    reason = _why_not() if ours else ""
    for item in ours:
        item.add_marker(pytest.mark.gpu)
        if reason:
            item.add_marker(pytest.mark.skip(reason=reason))
