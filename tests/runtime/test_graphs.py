"""Which shapes are captured, when, and which graph goes when there are too many."""

from collections.abc import Callable

import pytest

from runtime.graphs import DecodeGraphs


class Captures:
    """Work is a note of its name; a graph's replay notes the name of the work that was captured."""

    def __init__(self, max_graphs: int = 96) -> None:
        self.now = 0.0
        self.log: list[str] = []
        self.graphs = DecodeGraphs(self.capture, lambda: self.now, max_graphs)

    def capture(self, work: Callable[[], None]) -> Callable[[], None]:
        done, self.log = self.log, []
        work()
        (name,), self.log = self.log, [*done, "capture"]
        self.now += 2.0
        return lambda: self.log.append(f"replay {name}")

    def run(self, shape: str) -> None:
        self.graphs.run(shape, lambda: self.log.append(shape))


def test_eager_then_captured_then_replayed() -> None:
    captures = Captures()
    for shape in ("a", "b", "a", "a", "b"):
        captures.run(shape)
    assert captures.log == ["a", "b", "capture", "replay a", "replay a", "capture", "replay b"]
    assert captures.graphs.report == (2, 3, 2, 0, 0, 4.0, 2.0)


def test_the_graph_that_was_not_used_for_longest_goes_and_may_come_again() -> None:
    captures = Captures(max_graphs=2)
    for shape in ("a", "b", "c"):
        captures.run(shape)
    captures.log.clear()
    for shape in ("a", "b", "a", "c", "a", "b", "b"):
        captures.run(shape)
    # b has gone when it comes again, and is captured only if it comes once more.
    assert captures.log == ["capture", "replay a", "capture", "replay b", "replay a", "capture", "replay c", "replay a",
                            "b", "capture", "replay b"]  # fmt: skip
    assert captures.graphs.report.dropped == 2


def test_where_a_capture_fails_everything_is_eager_from_then_on(caplog: pytest.LogCaptureFixture) -> None:
    captures = Captures()
    for shape in ("a", "b", "a"):
        captures.run(shape)

    def broken(work: Callable[[], None]) -> Callable[[], None]:
        raise RuntimeError("operation not permitted when stream is capturing")

    captures.graphs._capture = broken
    captures.log.clear()
    for shape in ("b", "a", "b", "c", "c"):
        captures.run(shape)
    assert captures.log == ["b", "a", "b", "c", "c"]
    report = captures.graphs.report
    assert (report.captures, report.failed, report.eager) == (1, 1, 7)
    assert len([record for record in caplog.records if "all steps are eager" in record.message]) == 1
