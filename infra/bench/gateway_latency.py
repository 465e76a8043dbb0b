"""The latency rows: one connection, one request after another, and what of an answer's time is not the gateway's.

In every round, in turns on the gateway's core: the bare application, the gateway, a bare client of the mock runtime and
bare appends to the disk. A figure is the median over the rounds; a difference or a multiple is taken within a round.

    added     = the gateway's - the mock's round trip: what a caller waits longer than who has the runtime to himself.
                It is what the targets mean: theirs was the latency through a gateway less that of its upstream asked
                directly. HTTP and the wait for the disk are in it.
    beyond HTTP = added - the bare application's: what is left when HTTP on this machine is taken off as well.

Differences of percentiles, not percentiles of differences: no pair of answers is the same request.
"""

import json
import statistics
import subprocess
import sys
from collections.abc import Callable
from typing import Final

import httpx
import msgspec

from infra.bench.gateway_load import Run, bare, cores, routes, wrk
from infra.bench.gateway_stage import ROOT, BareStage, Stage
from infra.bench.rows import Row

# Where the targets come from the bare application took 0.08 ms: 0.5 ms are 6.25 of it.
ADDED_TARGET_MS: Final = {"p50": 0.5, "p99": 3.0}
ADDED_TARGET_BARE: Final = 6.25


class Wait(msgspec.Struct, frozen=True):
    """What a probe found."""

    p50_ms: float
    p99_ms: float


class Round(msgspec.Struct, frozen=True):
    """One of each, within seconds of one another."""

    bare: Run
    ours: Run
    mock: Wait
    disk: Wait

    def added_ms(self, share: str) -> float:
        """Ours less the mock's."""
        return _ms(self.ours, share) - _ms(self.mock, share)

    def beyond_http_ms(self, share: str) -> float:
        """That less the bare application's."""
        return self.added_ms(share) - _ms(self.bare, share)


def play_round(here: Stage, floor: BareStage, seconds: int) -> Round:
    """Both servers are alive the whole time, and one of them idle."""
    prompt_tokens, record_bytes = _sizes(here)
    return Round(
        bare(floor, seconds, connections=1),
        wrk(here, *routes(16, False)["ai/run"], seconds, connections=1),
        _probe("runtime", str(here.runtime_socket), prompt_tokens, seconds),
        _probe("disk", str(here.folder), record_bytes, seconds),
    )


def latency_rows(rounds: list[Round], metric: str, mode: str) -> list[Row]:
    """`mode`: what an answer waits for, for the note. One set of rows for each durability."""
    rows = []
    for share, most in ADDED_TARGET_MS.items():
        whole = statistics.median(_ms(each.ours, share) for each in rounds)
        added = statistics.median(each.added_ms(share) for each in rounds)
        beyond = statistics.median(each.beyond_http_ms(share) for each in rounds)
        rows += [
            Row(metric=f"{metric}.{share}", value=whole, unit="ms", note=f"1 connection, {mode}; all of it"),
            Row(metric=f"{metric}.added.{share}", value=added, unit="ms", target=f"<= {most:g} ms",
                holds=added <= most, note="less the mock's round trip"),
            Row(metric=f"{metric}.beyond_http.{share}", value=beyond, unit="ms",
                note="less the mock's round trip and the bare application's latency"),
        ]  # fmt: skip
    times = statistics.median(each.added_ms("p50") / each.bare.p50_ms for each in rounds)
    cpu = statistics.median(each.ours.cpu_us for each in rounds)
    bare_cpu = statistics.median(each.bare.cpu_us for each in rounds)
    note = f"a request's CPU with 1 connection; a bare one's: {bare_cpu:.0f} us"
    return [
        *rows,
        Row(metric=f"{metric}.added.p50.bare", value=times, unit="bare answers", target=f"<= {ADDED_TARGET_BARE:g}",
            holds=times <= ADDED_TARGET_BARE, note="latency.added.p50 in this machine's unit: floor.latency.p50"),
        Row(metric=f"{metric}.cpu", value=cpu, unit="us", note=note),
    ]  # fmt: skip


def surroundings(rounds: list[Round]) -> list[Row]:
    """What is not ours, by itself."""
    sides: dict[str, tuple[Callable[[Round], Run | Wait], str]] = {
        "floor": (lambda each: each.bare, "a bare Starlette application"),
        "mock": (lambda each: each.mock, "a bare client on the gateway's core asks the mock over its socket"),
        "disk": (
            lambda each: each.disk,
            "a record's bytes appended, and fdatasync, from the gateway's core on its disk",
        ),
    }
    return [
        Row(metric=f"{side}.latency.{share}", value=statistics.median(_ms(find(each), share) for each in rounds),
            unit="ms", note=note)
        for side, (find, note) in sides.items()
        for share in ADDED_TARGET_MS
    ]  # fmt: skip


def _ms(found: Run | Wait, share: str) -> float:
    return found.p50_ms if share == "p50" else found.p99_ms


def _sizes(here: Stage) -> tuple[int, int]:
    """Tokens of the prompt and bytes of the record, which one answer tells."""
    path, body = routes(16, False)["ai/run"]
    before = here.log_bytes()
    answer = httpx.post(here.root + path, json=body, headers={"authorization": f"Bearer {here.token}"})
    record_bytes = here.log_bytes() - before
    assert record_bytes > 0, "the answer came before its record"
    return answer.json()["result"]["usage"]["prompt_tokens"], record_bytes


def _probe(kind: str, where: str, size: int, seconds: int) -> Wait:
    both = cores()
    core = [] if both is None else ["taskset", "-c", str(both[0])]
    command = [*core, sys.executable, "-m", "infra.bench.gateway_probes", kind, where, str(size), str(seconds)]
    said = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    return msgspec.convert(json.loads(said), Wait)
