"""What stands for a CUDA graph where there is none: it records what a piece of work launches, and launches it again.

A replay runs no Python of the work. It calls the recorded operations and kernels with the very tensors and numbers of
the recording, so a number that was read on the host instead of from a buffer stays what it was, as in a graph, and a
result that nobody wrote is poison. Reading a tensor's value while recording fails, as it does while capturing.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

import torch
import triton.runtime.interpreter as triton_interpreter
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from torch.utils._pytree import tree_leaves

Work = Callable[[], None]

_FACTORIES = ("aten::empty", "aten::empty_strided", "aten::new_empty", "aten::empty_like")
_READS = ("aten::_local_scalar_dense", "aten::item", "aten::nonzero", "aten::masked_select")


class HostRead(AssertionError):
    """A capture would have failed here."""


class _Recorder(TorchDispatchMode):  # type: ignore[no-untyped-call]  # torch's own is untyped
    """Every operation that computes something becomes a call in `calls`."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.calls: list[Work] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = func._schema.name
        if name in _READS:
            raise HostRead(name)
        out = func(*args, **kwargs)
        made = [leaf for leaf in tree_leaves(out) if isinstance(leaf, torch.Tensor)]
        given = {leaf.untyped_storage().data_ptr() for leaf in tree_leaves((args, kwargs)) if torch.is_tensor(leaf)}
        fresh = [leaf.untyped_storage().data_ptr() not in given for leaf in made]
        if name in _FACTORIES:
            self.calls.append(lambda: _poison(made))
        elif not (given and not any(fresh) and not func._schema.is_mutable):  # a view computes nothing

            def call() -> None:
                again = [leaf for leaf in tree_leaves(func(*args, **kwargs)) if isinstance(leaf, torch.Tensor)]
                for kept, new, copies in zip(made, again, fresh, strict=True):
                    if copies:
                        kept.copy_(new)

            self.calls.append(call)
        return out


def _poison(tensors: list[torch.Tensor]) -> None:
    for tensor in tensors:
        tensor.fill_(float("nan") if tensor.is_floating_point() else -77)


@contextmanager
def _launches(calls: list[Work]) -> Iterator[None]:
    """Kernels are recorded, too; what the interpreter does with torch inside is not."""
    run = triton_interpreter.InterpretedFunction.run

    def recorded(kernel: Any, *args: Any, **kwargs: Any) -> Any:
        with _disable_current_modes():
            result = run(kernel, *args, **kwargs)
        calls.append(lambda: run(kernel, *args, **kwargs))
        return result

    with patch.object(triton_interpreter.InterpretedFunction, "run", recorded):
        yield


def record(work: Work) -> Work:
    """Fulfils `runtime.graphs.Capture`. Recording does the work, so the first replay has nothing left to do."""
    recorder = _Recorder()
    with _launches(recorder.calls), recorder:
        work()
    done = [True]

    def replay() -> None:
        if not done:
            for call in recorder.calls:
                call()
        done.clear()

    return replay
