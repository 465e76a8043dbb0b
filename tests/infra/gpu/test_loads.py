"""What the benchmarks of loads and of many adapters make of figures, and how their requests are drawn."""

import itertools
from collections import Counter

import pytest

from infra.bench.gpu import adapters, loads
from infra.bench.gpu.adapters_ours import zipf
from infra.bench.gpu.child import Line
from infra.bench.gpu.settings import LLAMA
from kernels.bench.rows import Row

ABOUT = {"device": "a card", "bandwidth": 4e12}
CURVE = {"steps": [[0.0, 4.0], [0.1, 5.0]], "asked": 0.05, "arrivals": [0.07]}


def _stream(busy: float, quiet: float) -> Line:
    gaps = {"p50": quiet, "p99": quiet, "number": 100}
    return {
        "quiet": gaps, "busy": {"p50": quiet, "p99": busy, "number": 90}, "burst_ms": 20.0, "bytes": 80_000_000,
        "curve": CURVE,
    }  # fmt: skip


def _row(rows: list[Row], metric: str) -> Row:
    (found,) = [row for row in rows if row.metric == metric]
    return found


@pytest.mark.parametrize(("ms", "host", "disk"), [(5.9, True, True), (6.1, False, True), (41.0, False, False)])
def test_a_load_may_take_a_copy_and_a_step(ms: float, host: bool, disk: bool) -> None:
    line = {"ms": ms, "bare_ms": 2.0, "bytes": 80_000_000}
    rows = loads.rows_of(LLAMA, ABOUT, {"host": line, "disk": line, "stream.1": _stream(4.0, 4.0)}, "it died")
    assert _row(rows, "load.host.r16").holds is host
    assert _row(rows, "load.disk.r16").holds is disk
    assert "bare 40.0" in _row(rows, "load.host.r16").note
    assert _row(rows, "load.file.r16").note == "it died"


@pytest.mark.parametrize(("busy", "holds"), [(4.07, True), (4.09, False)])
def test_running_requests_may_not_notice(busy: float, holds: bool) -> None:
    half, most = loads.stream_rows(LLAMA, 8, _stream(busy, 4.0), "")
    assert (half.holds, most.holds, most.target) == (None, holds, "<= 2% more")
    assert (most.value, most.peer_value) == (busy, 4.0)
    assert [row.note for row in loads.stream_rows(LLAMA, 8, {"note": "no time was left"}, "")] == [
        "no time was left"
    ] * 2


def test_the_curve_has_a_panel_for_each_burst_that_was_measured() -> None:
    panels = loads.panels(
        LLAMA, {"stream.1": _stream(4.0, 4.0), "stream.64": _stream(4.0, 4.0), "stream.8": {"note": "x"}}
    )
    assert [panel.title for panel in panels] == ["1 adapter", "64 adapters"]
    assert panels[0].steps == [(0.0, 4.0), (0.1, 5.0)]
    assert (panels[0].asked, panels[0].arrivals) == (0.05, [0.07])


@pytest.mark.parametrize(("rate", "holds"), [(910.0, True), (890.0, False)])
def test_many_adapters_beside_one(rate: float, holds: bool) -> None:
    line = {"rate": 1000.0, "used": 1, "together": 1.0, "resident": 1, "evictions": 0, "steps": 9}
    lines = {"zipf.1": line, "zipf.1000": {**line, "rate": rate, "together": 24.0}}
    rows = adapters.rows_of(LLAMA, ABOUT, lines, "it died")
    assert (_row(rows, "adapters.1").holds, _row(rows, "adapters.1000").holds) == (None, holds)
    # 23 adapters of 80 MB more in a step of 13.2 GB of weights, 1.6 GB of keys and values and one adapter.
    assert "24.0 adapters a step, by its bytes 0.89x" in _row(rows, "adapters.1000").note
    assert _row(rows, "adapters.10").note == "it died"
    assert _row(adapters.rows_of(LLAMA, ABOUT, {"zipf.10": line}, ""), "adapters.10").ratio is None


def test_popularity_is_zipfs() -> None:
    drawn = Counter(itertools.islice(zipf(1000, seed=1), 20_000))
    harmonic = sum(1 / rank for rank in range(1, 1001))
    for rank in (1, 2, 5):
        assert drawn[rank - 1] / 20_000 == pytest.approx(1 / rank / harmonic, rel=0.12)
    assert max(drawn) < 1000
    assert set(itertools.islice(zipf(1, seed=1), 5)) == {0}
    assert list(itertools.islice(zipf(9, seed=2), 9)) == list(itertools.islice(zipf(9, seed=2), 9))
