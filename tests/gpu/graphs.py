"""CUDA graphs for tests."""

from collections.abc import Callable

import torch


def captured(launches: Callable[[], None]) -> Callable[[], None]:
    """A CUDA graph of the launches; they have run before, on the side, as capturing needs."""
    stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        launches()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        launches()
    return graph.replay
