"""Each benchmark of a model as it runs on a GPU host, its processes included, at toy sizes in the interpreter: what is
measured here means nothing, but models, engine, loads, peer, rows, files and the picture are the real ones."""

from pathlib import Path

import pytest

from infra.bench.gpu import visit
from infra.bench.gpu.decode import FLOOR, PEER
from infra.bench.gpu.loads import COPY, QUIET
from kernels.bench.rows import Row, read_rows

pytestmark = [pytest.mark.slow, pytest.mark.timeout(400)]


def _run(step: str, folder: Path) -> list[Row]:
    assert visit.main(["--device", "cpu", "--step", step, "--minutes", "6", "--out", str(folder)]) == 0
    rows = read_rows(folder / f"gpu-{step}.json")
    assert len({(row.metric, row.peer) for row in rows}) == len(rows)
    assert all(row.value is not None for row in rows), [row for row in rows if row.value is None]
    return rows


def test_decode(tmp_path: Path) -> None:
    rows = _run("decode", tmp_path)
    found = {(row.metric, row.peer) for row in rows}
    for case in ("decode.b2.base", "decode.b2.r2.d2"):
        assert {(case, FLOOR), (f"{case}.rate", PEER)} <= found
    assert {("decode.b2.r2.d2.overhead", None), ("ttft.5", PEER), ("ttft.5.adapter", PEER)} <= found
    assert {("decode.idle_adapters", None), ("decode.capture", None), ("decode.start", None)} <= found
    assert all(row.peer_value is not None for row in rows if row.peer == PEER)


def test_loads(tmp_path: Path) -> None:
    rows = _run("loads", tmp_path)
    assert {row.metric: row.peer for row in rows} == {
        "load.host.r2": COPY, "load.file.r2": COPY, "load.disk.r2": COPY,
        "load.while_running.1.p50": QUIET, "load.while_running.1.p99": QUIET,
    }  # fmt: skip
    assert (tmp_path / "gpu-loads.png").read_bytes().startswith(b"\x89PNG")


def test_adapters(tmp_path: Path) -> None:
    one, two = _run("adapters", tmp_path)
    assert (one.metric, one.ratio, two.metric) == ("adapters.1", 1.0, "adapters.2")
    assert "2 adapters were asked for" in two.note
