"""The queues of a device: steps run on one, adapters travel on another, and marks say how far each has come.

    compute  ── step 1 ──●── step 2 ──●──────────── step 3 ──●──        ● a mark
    copies        └───── bytes ── scatter ──●───────┘                   step 3 waits for the adapter's mark

A third one, `beside`, takes what a step can do at the same time as something else of its own.

Work in one queue runs in order; across queues only what waits for a mark does. Nothing here makes the host wait but
`Mark.wait`. On a CPU work is done when it is called, so all marks are reached.
"""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import torch


class Mark(Protocol):
    """A place in a queue."""

    def done(self) -> bool:
        """Whether everything before it has run. Does not wait."""
        ...

    def wait(self) -> None:
        """The host waits for it."""
        ...


class Queue(Protocol):
    """One queue of a device. Any thread may use it, one at a time."""

    def use(self) -> contextlib.AbstractContextManager[None]:
        """What torch and Triton start within goes into this queue."""
        ...

    def mark(self) -> Mark:
        """Behind everything that is in the queue by now."""
        ...

    def after(self, mark: Mark) -> None:
        """What comes into this queue from now on runs after `mark`, which may be another queue's."""
        ...


class Queues(NamedTuple):
    """See the file's header."""

    compute: Queue
    copies: Queue
    beside: Queue


def queues_of(device: torch.device) -> Queues:
    """New ones."""
    if device.type == "cuda":
        return Queues(_CudaQueue(device), _CudaQueue(device), _CudaQueue(device, first=True))
    return Queues(HostQueue(), HostQueue(), HostQueue())


class HostQueue:
    """Everything is done at once."""

    @contextlib.contextmanager
    def use(self) -> Iterator[None]:
        """See `Queue`."""
        yield

    def mark(self) -> Mark:
        """See `Queue`."""
        return _REACHED

    def after(self, mark: Mark) -> None:
        """See `Queue`."""


class _Reached:
    def done(self) -> bool:
        return True

    def wait(self) -> None:
        return


_REACHED = _Reached()


class _CudaQueue:
    """A stream. `stream` is torch's. first: its programs are begun before other streams' where both wait."""

    def __init__(self, device: torch.device, *, first: bool = False) -> None:
        self.stream = torch.cuda.Stream(device, priority=-int(first))  # type: ignore[no-untyped-call]  # untyped

    @contextlib.contextmanager
    def use(self) -> Iterator[None]:
        with torch.cuda.stream(self.stream):
            yield

    def mark(self) -> Mark:
        event = torch.cuda.Event()  # type: ignore[no-untyped-call]
        event.record(self.stream)
        return _CudaMark(event)

    def after(self, mark: Mark) -> None:
        if isinstance(mark, _CudaMark):
            self.stream.wait_event(mark.event)


class _CudaMark:
    def __init__(self, event: Any) -> None:
        self.event = event

    def done(self) -> bool:
        return bool(self.event.query())

    def wait(self) -> None:
        self.event.synchronize()


@dataclass
class Turn:
    """A buffer of the host that takes its turns, and the mark after which it may be written again."""

    tensor: torch.Tensor
    mark: Mark | None = None

    def free(self) -> bool:
        """Whether it may be written now. Does not wait."""
        if self.mark is not None and self.mark.done():
            self.mark = None
        return self.mark is None


def host_tensor(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """Zeros in host memory that copies to and from this device run beside the host with: pages that cannot move."""
    return torch.zeros(shape, dtype=dtype, pin_memory=device.type == "cuda")
