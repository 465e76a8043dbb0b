"""`make bench-gateway`: what one request and one stream cost the gateway in CPU, with everything on.

    python -m infra.bench.gateway [--seconds N] [--rounds N] [--json | --markdown] [--profile FILE]

The gateway process of a deployment has a core of its own; wrk and a mock runtime, which speaks the real protocol, share
another. Authentication, limits, template and tokens, the durable log (mode `ack`) and detokenisation are on. CPU is
that of the gateway's process, all its threads, divided by what wrk counted. A request asks for 16 tokens, which come in
one frame; a stream for 50, which come one at a time. The last rows are of 1,000 streams at once.
"""

import argparse
import json
import os
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

from rich.console import Console

from gateway.settings import DEMO_MODEL
from infra.bench.gateway_stage import ROOT, Stage, bare_stage, stage
from infra.bench.rows import Row, markdown, print_rows, write_rows

RESULTS: Final = ROOT / "bench-results"
CONNECTIONS: Final = 32
TOKENS: Final = 50
CROWD: Final = 1000
REQUEST_TARGET_US: Final = 250.0
STREAM_TARGET_US: Final = 600.0
STREAM_TARGET_KB: Final = 50.0
_HELLO: Final = [{"role": "user", "content": "What does Molbury sell, and to whom does it sell it?"}]
_SCRIPT: Final = """
wrk.method = "POST"
wrk.body = [==[%s]==]
wrk.headers["authorization"] = "Bearer %s"
wrk.headers["content-type"] = "application/json"
"""


def routes(tokens: int, stream: bool) -> dict[str, tuple[str, dict[str, object]]]:
    """Path and body of each dialect."""
    body: dict[str, object] = {"messages": _HELLO, "max_tokens": tokens, "stream": stream, "temperature": 0.7}
    return {
        "ai/run": (f"/ai/run/{DEMO_MODEL}", body),
        "chat": ("/ai/v1/chat/completions", {**body, "model": DEMO_MODEL}),
    }


def wrk(
    here: Stage, path: str, body: dict[str, object], seconds: int, connections: int, folder: Path
) -> dict[str, float]:
    """Requests, CPU microseconds of the gateway for each, and the latencies that wrk saw."""
    script = folder / "post.lua"
    script.write_text(_SCRIPT % (json.dumps(body), here.token))
    core = ["taskset", "-c", str(max(os.sched_getaffinity(0)))] if len(os.sched_getaffinity(0)) > 1 else []
    command = [*core, "wrk", "-t1", f"-c{connections}", f"-d{seconds}s", "--latency", "--timeout", "30s", "-s",
               str(script), here.root + path]  # fmt: skip
    before = here.cpu_s()
    said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    spent = here.cpu_s() - before
    count = int(re.search(r"(\d+) requests in", said)[1])  # type: ignore[index]  # wrk always says it
    assert count, said
    assert "Non-2xx" not in said, said
    assert "Socket errors" not in said, said
    return {
        "count": count, "cpu_us": spent * 1e6 / count, "rate": count / seconds,
        "p50_ms": _latency(said, "50%"), "p99_ms": _latency(said, "99%"),
    }  # fmt: skip


def _latency(said: str, share: str) -> float:
    found = re.search(rf"{share}\s+([\d.]+)(us|ms|s)", said)
    assert found, said
    return float(found[1]) * {"us": 0.001, "ms": 1.0, "s": 1000.0}[found[2]]


def measure(seconds: int, rounds: int, profile: Path | None) -> list[Row]:
    """All rows."""
    rows: list[Row] = []
    with tempfile.TemporaryDirectory() as name, stage(Path(name), _cores()) as here:
        folder = Path(name)
        for path, body in routes(16, False).values():  # caches fill, code is warm
            wrk(here, path, body, 1, CONNECTIONS, folder)
        if profile is not None:
            _profile(here, folder, profile)
        for kind, tokens, stream, target in (("request", 16, False, REQUEST_TARGET_US),
                                             ("stream", TOKENS, True, STREAM_TARGET_US)):  # fmt: skip
            for dialect, (path, body) in routes(tokens, stream).items():
                runs = [wrk(here, path, body, seconds, CONNECTIONS, folder) for _ in range(rounds)]
                cpu = statistics.median(run["cpu_us"] for run in runs)
                rate = statistics.median(run["rate"] for run in runs)
                note = f"{rate:.0f} a second, {CONNECTIONS} connections"
                rows.append(_at_most(f"{dialect}.{kind}.cpu", cpu, "us", target, note))
        rows += _latency_rows(here, "latency", "the mock's time and the wait for the disk included", seconds, rounds)
        rows += _crowd(here)
    with tempfile.TemporaryDirectory() as name, stage(Path(name), _cores(), durability="group") as here:
        wrk(here, *routes(16, False)["ai/run"], 1, CONNECTIONS, Path(name))
        rows += _latency_rows(here, "latency.group", "the same in mode `group`: no wait for the disk", seconds, rounds)
    with tempfile.TemporaryDirectory() as name, stage(Path(name), _cores(), stream_gap_ms=0) as here:
        wrk(here, *routes(TOKENS, True)["chat"], 1, CONNECTIONS, Path(name))
        cpu = _cpu_us(here, *routes(TOKENS, True)["chat"], seconds, rounds)
        note = f"stream_gap_ms = 0: every token a write of its own, {TOKENS} of them"
        rows.append(_at_most("chat.stream.each_token.cpu", cpu, "us", STREAM_TARGET_US, note))
    with bare_stage(_cores()) as here:
        bare = _cpu_us(here, "/", routes(16, False)["chat"][1], seconds, rounds)
    times = statistics.median(row.value for row in rows if row.metric.endswith(".request.cpu") and row.value) / bare
    note = f"a bare Starlette application on the same server, this machine's unit: our request takes {times:.1f} of it"
    return [*rows, Row(metric="floor.request.cpu", value=bare, unit="us", note=note)]


def _cpu_us(here: Stage, path: str, body: dict[str, object], seconds: int, rounds: int) -> float:
    with tempfile.TemporaryDirectory() as name:
        return statistics.median(
            wrk(here, path, body, seconds, CONNECTIONS, Path(name))["cpu_us"] for _ in range(rounds)
        )


def _latency_rows(here: Stage, metric: str, note: str, seconds: int, rounds: int) -> list[Row]:
    with tempfile.TemporaryDirectory() as name:
        runs = [wrk(here, *routes(16, False)["ai/run"], seconds, 1, Path(name)) for _ in range(rounds)]
    return [
        _at_most(f"{metric}.{share}", statistics.median(run[f"{share}_ms"] for run in runs), "ms", most,
                 f"1 connection, {note}")
        for share, most in (("p50", 0.5), ("p99", 3.0))
    ]  # fmt: skip


def _cores() -> tuple[int, int] | None:
    """(the gateway's, everything else's)"""
    cores = (min(os.sched_getaffinity(0)), max(os.sched_getaffinity(0)))
    return cores if cores[0] != cores[1] else None


def _at_most(metric: str, value: float, unit: str, most: float, note: str) -> Row:
    return Row(
        metric=metric, value=value, unit=unit, target=f"<= {most:g} {unit}", holds=value <= most, note=note
    )  # fmt: skip


def _crowd(here: Stage) -> list[Row]:
    path, body = routes(TOKENS * 4, True)["chat"]
    data, parts = json.dumps(body), urlsplit(here.url)
    head = (
        f"POST {urlsplit(here.root).path}{path} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {here.token}\r\n"
        f"Content-Length: {len(data)}\r\n\r\n{data}"
    )
    before = here.memory_bytes()
    said = subprocess.run(
        [sys.executable, "-m", "infra.bench.stream_crowd", str(parts.hostname), str(parts.port)], cwd=ROOT, check=True,
        input=json.dumps({"head": head, "streams": CROWD, "pid": here.pid}) + "\n", capture_output=True, text=True,
    ).stdout  # fmt: skip
    found = json.loads(said)
    each = (found["memory_bytes"] - before) / CROWD / 1024
    return [
        Row(metric="crowd.complete", value=found["complete"], unit="streams", target=f"{CROWD}",
            holds=found["complete"] == CROWD, note=f"{TOKENS * 4} tokens each, {found['events']} events in all"),
        _at_most("crowd.memory", each, "KB a stream", STREAM_TARGET_KB,
                 "resident memory while all are under way, less that before"),
    ]  # fmt: skip


def _profile(here: Stage, folder: Path, out: Path) -> None:
    """Samples of the gateway under each load, by py-spy; `collapsed` stacks, one file a load."""
    for kind, tokens, stream in (("request", 16, False), ("stream", TOKENS, True)):
        path, body = routes(tokens, stream)["chat"]
        sampler = subprocess.Popen(
            ["py-spy", "record", "--gil", "-p", str(here.pid), "-d", "8", "-r", "500", "-f", "raw",
             "-o", f"{out}.{kind}"],
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        wrk(here, path, body, 9, CONNECTIONS, folder)
        sampler.wait(60)


def main() -> None:
    """The table, and bench-results/gateway.json."""
    arguments = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    arguments.add_argument("--seconds", type=int, default=8)
    arguments.add_argument("--rounds", type=int, default=3)
    arguments.add_argument("--profile", type=Path)
    arguments.add_argument("--json", action="store_true")
    arguments.add_argument("--markdown", action="store_true")
    chosen = arguments.parse_args()
    if shutil.which("wrk") is None:
        raise SystemExit("wrk is needed to make load: apt-get install wrk")
    rows = measure(chosen.seconds, chosen.rounds, chosen.profile)
    write_rows(RESULTS / "gateway.json", rows)
    if chosen.json:
        print((RESULTS / "gateway.json").read_text(encoding="utf-8"), end="")
    elif chosen.markdown:
        print(markdown(rows))
    else:
        print_rows(Console(), "gateway", rows)


if __name__ == "__main__":
    main()
