"""What `make bench-gateway` makes of wrk's words and of a round, and its probes against the real mock and disk."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from infra.bench.gateway_latency import Round, Wait, latency_rows, surroundings
from infra.bench.gateway_load import Run, read_run
from infra.bench.gateway_probes import disk_waits, runtime_waits
from infra.bench.gateway_stage import ROOT

SAID = """Running 1s test @ http://127.0.0.1:1/
  1 threads and 1 connections
  Thread Stats   Avg      Stdev     Max   +/- Stdev
    Latency     1.20ms  700.00us   9.10ms   90.00%
    Req/Sec     0.80k    10.00      0.90k    60.00%
  Latency Distribution
     50%  980.00us
     75%    1.10ms
     90%    1.40ms
     99%    2.50ms
  1600 requests in 2.00s, 1.00MB read
Requests/sec:    800.00
Transfer/sec:    500.00KB
"""


def test_wrks_words_become_figures() -> None:
    assert read_run(SAID, spent_s=0.8) == Run(count=1600, cpu_us=500.0, rate=800.0, p50_ms=0.98, p99_ms=2.5)


@pytest.mark.parametrize("line", ["  Non-2xx or 3xx responses: 1\n", "  Socket errors: connect 0, read 1\n"])
def test_a_run_with_a_failed_answer_is_no_figure(line: str) -> None:
    with pytest.raises(AssertionError):
        read_run(SAID.replace("Requests/sec", line + "Requests/sec"), spent_s=0.8)


def ran(p50_ms: float, p99_ms: float) -> Run:
    return Run(count=1000, cpu_us=500.0, rate=1000.0, p50_ms=p50_ms, p99_ms=p99_ms)


# In a slow spell of the machine everything takes twice as long: the second round is the first one in another unit.
SLOW = Round(ran(0.2, 1.0), ran(1.4, 5.0), Wait(0.2, 0.4), Wait(0.6, 2.0))
QUICK = Round(ran(0.1, 0.5), ran(0.7, 2.5), Wait(0.1, 0.2), Wait(0.3, 1.0))


def test_what_the_gateway_adds_is_less_the_mock_and_judged_on_the_clock_and_in_the_machines_unit() -> None:
    rows = {row.metric: row for row in latency_rows([SLOW], "latency", "mode `ack`")}
    assert rows["latency.p50"].value == pytest.approx(1.4)
    assert rows["latency.added.p50"].value == pytest.approx(1.2)
    assert rows["latency.beyond_http.p50"].value == pytest.approx(1.0)
    assert rows["latency.added.p50.bare"].value == pytest.approx(6.0)
    assert [rows[f"latency.added.{name}"].holds for name in ("p50", "p99", "p50.bare")] == [False, False, True]


def test_a_multiple_is_taken_within_a_round() -> None:
    """Medians apart, of one slow and one quick side, would be a machine that never was."""
    rows = {row.metric: row for row in latency_rows([SLOW, QUICK, QUICK], "latency", "mode `ack`")}
    assert rows["latency.added.p50.bare"].value == pytest.approx(6.0)
    assert rows["latency.added.p50"].value == pytest.approx(0.6)


def test_what_is_not_the_gateways_has_rows_of_its_own() -> None:
    rows = {row.metric: row.value for row in surroundings([QUICK])}
    assert rows == {
        "floor.latency.p50": 0.1, "floor.latency.p99": 0.5, "mock.latency.p50": 0.1, "mock.latency.p99": 0.2,
        "disk.latency.p50": 0.3, "disk.latency.p99": 1.0,
    }  # fmt: skip


def test_the_probe_of_the_disk_waits_for_the_medium(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []

    def write(fd: int, record: bytes, end: int) -> int:
        calls.append(f"{len(record)} at {end}")
        return len(record)

    monkeypatch.setattr("os.pwrite", write)
    monkeypatch.setattr("os.fdatasync", lambda fd: calls.append("sync"))
    waits = disk_waits(str(tmp_path), 700, seconds=0.0)
    assert calls[:4] == ["700 at 0", "sync", "700 at 700", "sync"]
    assert 0 < waits["p50_ms"] <= waits["p99_ms"]


def test_the_probe_of_the_runtime_gets_answers_of_the_real_mock(tmp_path: Path) -> None:
    path = tmp_path / "mock.sock"
    mock = subprocess.Popen(
        [sys.executable, "-m", "infra.bench.mock_runtime", str(path), "4096"], cwd=ROOT, stdout=subprocess.PIPE
    )
    try:
        assert mock.stdout is not None
        assert mock.stdout.readline() == b"ready\n"
        waits = runtime_waits(str(path), 40, seconds=0.0)
    finally:
        mock.kill()
        mock.communicate()
    assert 0 < waits["p50_ms"] <= waits["p99_ms"]


def test_a_probe_says_its_waits_in_json(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "infra.bench.gateway_probes", "disk", str(tmp_path), "700", "0"]
    said = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert sorted(json.loads(said)) == ["p50_ms", "p99_ms"]
