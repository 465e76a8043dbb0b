"""Time on a device: a list of operations captured in one CUDA graph, replayed, divided by their number.

The operations of a list do the same on different data, more of it than the L2 cache holds, so each finds its inputs in
memory; a graph leaves out what Python takes to launch. Two lists are compared by replaying them in turns, so that both
see the same clocks. On a CPU, where only tests run this, operations are simply called.
"""

import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch

from kernels.triton_jit import CompileCase, Pointer, jit, pointer, tl

Operation = Callable[[], object]


class Timed:
    """A captured list. Raises what the operations raise when they are run the first time."""

    def __init__(self, operations: Sequence[Operation], device: torch.device) -> None:
        self._operations, self._graph = list(operations), None
        if device.type != "cuda":
            return
        stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for operation in self._operations:
                operation()
        torch.cuda.current_stream().wait_stream(stream)
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        # On the stream that was warmed: some peers keep scratch per stream, and may not make more while capturing.
        with torch.cuda.graph(graph, stream=stream):
            for operation in self._operations:
                operation()
        self._graph = graph

    def once_us(self) -> float:
        """Microseconds per operation, of one replay."""
        if self._graph is None:
            begin = time.perf_counter()
            for operation in self._operations:
                operation()
            return 1e6 * (time.perf_counter() - begin) / len(self._operations)
        begin_event, end_event = _event(), _event()
        begin_event.record()
        self._graph.replay()
        end_event.record()
        end_event.synchronize()
        elapsed: float = begin_event.elapsed_time(end_event)
        return 1e3 * elapsed / len(self._operations)


def in_turns(lists: Sequence[Timed], repeats: int) -> list[float]:
    """The median microseconds of each, after one replay that does not count."""
    for timed in lists:
        timed.once_us()
    rounds = [[timed.once_us() for timed in lists] for _ in range(repeats)]
    return [statistics.median(times) for times in zip(*rounds, strict=True)]


def copy_bandwidth(device: torch.device, size: int = 1 << 30) -> float:
    """Bytes per second of a plain copy, read and written bytes together: what the byte floors are counted with."""
    source = torch.empty(size if device.type == "cuda" else 1 << 20, dtype=torch.uint8, device=device).random_()
    target = torch.empty_like(source)
    copy = Timed([lambda: target.copy_(source)] * 4, device)
    return 2 * source.numel() / (1e-6 * in_turns([copy], 9)[0])


def launch_us(device: torch.device) -> float:
    """What two kernels that do next to nothing take in a graph: no pair of launches is faster."""
    cell = torch.zeros(1, device=device)

    def pair() -> None:
        for _ in range(2):
            if device.type == "cuda":
                _nothing_kernel[(1,)](cell, num_warps=1)

    return in_turns([Timed([pair] * 100, device)], 9)[0]


@jit
def _nothing_kernel(cell: Pointer) -> None:
    tl.store(cell, 1.0)


def _event() -> Any:
    return torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]


def compile_cases() -> tuple[CompileCase, ...]:
    """The empty launch."""
    return (CompileCase("nothing", _nothing_kernel, {"cell": pointer(torch.float32)}, {}, num_warps=1),)
