"""Work that is captured in a CUDA graph, where there is one; elsewhere a replay is the work itself once more."""

import os
from collections.abc import Callable

import torch


def captured(work: Callable[[], torch.Tensor], device: str) -> Callable[[], torch.Tensor]:
    """A replay that returns what `work` wrote, the same tensor every time on a GPU. `work` runs twice before, so that
    nothing is compiled or looked up for the first time while the graph is captured."""
    # The sanitizer's tests run without torch's cache of memory, and without it nothing can be made while capturing.
    if device == "cpu" or os.environ.get("PYTORCH_NO_CUDA_MEMORY_CACHING"):
        return work
    stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]  # torch's own is untyped
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        work()
        work()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = work()

    def replay() -> torch.Tensor:
        graph.replay()
        return out

    return replay
