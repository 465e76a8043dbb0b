"""CUDA graphs of decode steps: what a shape launches is recorded once and started again with one call.

    first time    run eagerly, through the same fixed buffers: compiles and loads what the shape needs
    second time   captured, then replayed
    from then on  replayed

So a shape that comes once costs no capture, and a capture (some hundred launches on the host, none on the device) is
the longest that a step is ever held up: a step has one shape. Work reads and writes fixed addresses only, reads nothing
on the host, and leaves its results in buffers of the caller. All graphs share one pool of memory, for they never run at
once. Beyond `max_graphs` the one that was not used for longest is dropped. Where a capture fails everything is run
eagerly from then on: slower, and right.
"""

import gc
import logging
from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Final, NamedTuple

import torch

logger = logging.getLogger(__name__)

MAX_GRAPHS: Final = 96
MAX_SEEN: Final = 4096

Work = Callable[[], None]
Capture = Callable[[Work], Work]
"""Records what the work launches, without running it, and returns its replay."""


class GraphReport(NamedTuple):
    """Counts since the start; seconds of all captures and of the longest one. failed: 1 when there are no graphs any
    more."""

    captures: int
    replays: int
    eager: int
    dropped: int
    failed: int
    capture_s: float
    longest_s: float


class DecodeGraphs:
    """Graphs by shape. The engine thread owns it."""

    def __init__(self, capture: Capture, clock: Callable[[], float], max_graphs: int = MAX_GRAPHS) -> None:
        self._capture, self._clock, self._max_graphs = capture, clock, max_graphs
        self._graphs: OrderedDict[Hashable, Work] = OrderedDict()
        self._seen: OrderedDict[Hashable, None] = OrderedDict()
        self._captures = self._replays = self._eager = self._dropped = self._failed = 0
        self._capture_s = self._longest_s = 0.0

    @property
    def report(self) -> GraphReport:
        """What it has done so far."""
        return GraphReport(
            self._captures,
            self._replays,
            self._eager,
            self._dropped,
            self._failed,
            self._capture_s,
            self._longest_s,
        )

    def run(self, shape: Hashable, work: Work) -> None:
        """Does the work of this shape; `work` of equal shapes must be the same but for what the buffers hold."""
        replay = self._graphs.get(shape)
        if replay is None and shape in self._seen and not self._failed:
            replay = self._captured(shape, work)
        if replay is None:
            self._note(shape)
            self._eager += 1
            work()
            return
        self._graphs.move_to_end(shape)
        self._replays += 1
        replay()

    def _note(self, shape: Hashable) -> None:
        self._seen[shape] = None
        if len(self._seen) > MAX_SEEN:
            self._seen.popitem(last=False)

    def _captured(self, shape: Hashable, work: Work) -> Work | None:
        began = self._clock()
        if len(self._graphs) >= self._max_graphs:
            dropped, _ = self._graphs.popitem(last=False)
            self._seen.pop(dropped, None)  # its next use is eager again: no capture for what hardly ever comes
            self._dropped += 1
        try:
            replay = self._capture(work)
        except Exception:
            # A device that is lost says so again in the eager step.
            logger.exception("no graph for %s can be captured: all steps are eager from now on", shape)
            self._failed = 1
            self._graphs.clear()
            return None
        self._graphs[shape] = replay
        seconds = self._clock() - began
        self._captures += 1
        self._capture_s += seconds
        self._longest_s = max(self._longest_s, seconds)
        logger.info("a graph for %s was captured in %.0f ms", shape, seconds * 1000)
        return replay


class CudaCapture:
    """`Capture` into graphs of one pool, on the stream that is current, which must not be the default one."""

    def __init__(self) -> None:
        self._pool = torch.cuda.graph_pool_handle()

    def __call__(self, work: Work) -> Work:
        """See `Capture`."""
        graph = torch.cuda.CUDAGraph()
        # Collecting garbage in the middle could end another graph, which a capture does not survive.
        collects = gc.isenabled()
        gc.disable()
        try:
            # Other threads go on registering host memory meanwhile, which "global" would forbid.
            graph.capture_begin(pool=self._pool, capture_error_mode="thread_local")
            try:
                work()
            finally:
                graph.capture_end()
        finally:
            if collects:
                gc.enable()
        replay: Work = graph.replay
        return replay


def again(work: Work) -> Work:
    """`Capture` where there are no graphs: a replay is the work itself once more."""
    return work
