"""`make bench-gateway`: what one request and one stream cost the gateway in CPU, with everything on.

    python -m infra.bench.gateway [--seconds N] [--rounds N] [--json | --markdown] [--profile FILE]

The gateway process of a deployment has a core of its own; wrk and a mock runtime, which speaks the real protocol, share
another. Authentication, limits, template and tokens, the durable log (mode `ack`) and detokenisation are on. CPU is
that of the gateway's process, all its threads, divided by what wrk counted. A request asks for 16 tokens, which come in
one frame; a stream for 50, which come one at a time. A bare application on the gateway's core takes turns with it: what
it costs is the unit in which the targets are judged a second time. Then the latency with one connection, and 1,000
streams at once.
"""

import argparse
import json
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

from rich.console import Console

from infra.bench.gateway_latency import latency_rows, play_round, surroundings
from infra.bench.gateway_load import CONNECTIONS, TOKENS, Run, bare, cores, routes, wrk
from infra.bench.gateway_stage import ROOT, BareStage, Stage, bare_stage, stage
from infra.bench.rows import Row, markdown, print_rows, write_rows

RESULTS: Final = ROOT / "bench-results"
CROWD: Final = 1000
REQUEST_TARGET_US: Final = 250.0
STREAM_TARGET_US: Final = 600.0
STREAM_TARGET_KB: Final = 50.0
# What a request of the bare application cost on the machine that these targets come from.
BARE_THERE_US: Final = 32.0


def measure(seconds: int, rounds: int, profile: Path | None) -> list[Row]:
    """All rows. The bare application is alive throughout, so that every round has its own."""
    with bare_stage(cores()) as floor:
        bare(floor, 1)
        with tempfile.TemporaryDirectory() as name, stage(Path(name), cores()) as here:
            for path, body in routes(16, False).values():  # caches fill, code is warm
                wrk(here, path, body, 1)
            if profile is not None:
                _profile(here, profile)
            rows: list[Row] = []
            floors: list[Run] = []
            for kind, tokens, stream, target in (("request", 16, False, REQUEST_TARGET_US),
                                                 ("stream", TOKENS, True, STREAM_TARGET_US)):  # fmt: skip
                for dialect, (path, body) in routes(tokens, stream).items():
                    pairs = _pairs(floor, here, path, body, seconds, rounds)
                    floors += [unit for unit, _ in pairs]
                    rows += _cpu_rows(f"{dialect}.{kind}.cpu", pairs, target, f"{CONNECTIONS} connections")
            rows.append(_floor_row(floors))
            played = [play_round(here, floor, seconds) for _ in range(rounds)]
            rows += surroundings(played)
            rows += latency_rows(played, "latency", "mode `ack`: the answer waits for the disk")
            rows += _crowd(here)
        with tempfile.TemporaryDirectory() as name, stage(Path(name), cores(), durability="group") as here:
            wrk(here, *routes(16, False)["ai/run"], 1)
            played = [play_round(here, floor, seconds) for _ in range(rounds)]
            rows += latency_rows(played, "latency.group", "mode `group`: the answer does not wait for the disk")
        with tempfile.TemporaryDirectory() as name, stage(Path(name), cores(), stream_gap_ms=0) as here:
            path, body = routes(TOKENS, True)["chat"]
            wrk(here, path, body, 1)
            pairs = _pairs(floor, here, path, body, seconds, rounds)
            note = f"stream_gap_ms = 0: every token a write of its own, {TOKENS} of them"
            rows += _cpu_rows("chat.stream.each_token.cpu", pairs, STREAM_TARGET_US, note)
    return rows


def _pairs(
    floor: BareStage, here: Stage, path: str, body: dict[str, object], seconds: int, rounds: int
) -> list[tuple[Run, Run]]:
    """The bare application and the gateway in turns, each under 32 connections."""
    return [(bare(floor, seconds), wrk(here, path, body, seconds)) for _ in range(rounds)]


def _cpu_rows(metric: str, pairs: list[tuple[Run, Run]], target_us: float, note: str) -> Iterator[Row]:
    """Two verdicts: the figure on the clock, and in the machine's own unit, a bare request of the same round."""
    cpu = statistics.median(ours.cpu_us for _, ours in pairs)
    rate = statistics.median(ours.rate for _, ours in pairs)
    times = statistics.median(ours.cpu_us / unit.cpu_us for unit, ours in pairs)
    most = target_us / BARE_THERE_US
    yield _at_most(metric, cpu, "us", target_us, f"{rate:.0f} a second, {note}")
    yield _at_most(f"{metric}.bare", times, "bare requests", most,
                   f"{target_us:g} us are {most:.3g} where a bare one takes {BARE_THERE_US:g} us")  # fmt: skip


def _floor_row(runs: list[Run]) -> Row:
    values = [run.cpu_us for run in runs]
    note = (
        f"a bare Starlette application on the same server, {CONNECTIONS} connections; runs {min(values):.0f} to "
        f"{max(values):.0f}"
    )
    return Row(metric="floor.request.cpu", value=statistics.median(values), unit="us", note=note)


def _at_most(metric: str, value: float, unit: str, most: float, note: str) -> Row:
    return Row(
        metric=metric, value=value, unit=unit, target=f"<= {most:.3g} {unit}", holds=value <= most, note=note
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


def _profile(here: Stage, out: Path) -> None:
    """Samples of the gateway under each load, by py-spy; `collapsed` stacks, one file a load."""
    for kind, tokens, stream in (("request", 16, False), ("stream", TOKENS, True)):
        path, body = routes(tokens, stream)["chat"]
        sampler = subprocess.Popen(
            ["py-spy", "record", "--gil", "-p", str(here.pid), "-d", "8", "-r", "500", "-f", "raw",
             "-o", f"{out}.{kind}"],
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        wrk(here, path, body, 9)
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
