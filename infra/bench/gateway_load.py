"""What the gateway is asked while it is measured, and wrk, which asks it and tells how long an answer took."""

import json
import os
import re
import subprocess
import tempfile
from pathlib import Path
from typing import Final

import msgspec

from gateway.settings import DEMO_MODEL
from infra.bench.gateway_stage import BareStage, Stage

CONNECTIONS: Final = 32
TOKENS: Final = 50
_HELLO: Final = [{"role": "user", "content": "What does Molbury sell, and to whom does it sell it?"}]
_SCRIPT: Final = """
wrk.method = "POST"
wrk.body = [==[%s]==]
wrk.headers["authorization"] = "Bearer %s"
wrk.headers["content-type"] = "application/json"
"""


class Run(msgspec.Struct, frozen=True):
    """One run of wrk: answers, CPU microseconds of the server for each, answers a second, and the latencies."""

    count: int
    cpu_us: float
    rate: float
    p50_ms: float
    p99_ms: float


def routes(tokens: int, stream: bool) -> dict[str, tuple[str, dict[str, object]]]:
    """Path and body of each dialect."""
    body: dict[str, object] = {"messages": _HELLO, "max_tokens": tokens, "stream": stream, "temperature": 0.7}
    return {
        "ai/run": (f"/ai/run/{DEMO_MODEL}", body),
        "chat": ("/ai/v1/chat/completions", {**body, "model": DEMO_MODEL}),
    }


def bare(here: BareStage, seconds: float, connections: int = CONNECTIONS) -> Run:
    """The bare application under the load of a request, whose body is as long."""
    return wrk(here, "/", routes(16, False)["chat"][1], seconds, connections)


def wrk(here: Stage, path: str, body: dict[str, object], seconds: float, connections: int = CONNECTIONS) -> Run:
    """One run. wrk shares its core with everything that is not the server."""
    core = ["taskset", "-c", str(max(os.sched_getaffinity(0)))] if len(os.sched_getaffinity(0)) > 1 else []
    with tempfile.TemporaryDirectory() as name:
        script = Path(name) / "post.lua"
        script.write_text(_SCRIPT % (json.dumps(body), here.token))
        command = [*core, "wrk", "-t1", f"-c{connections}", f"-d{seconds:g}s", "--latency", "--timeout", "30s", "-s",
                   str(script), here.root + path]  # fmt: skip
        before = here.cpu_s()
        said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        spent = here.cpu_s() - before
    return read_run(said, spent)


def read_run(said: str, spent_s: float) -> Run:
    """What wrk says, and the CPU seconds that the server spent meanwhile; no error may be among the answers."""
    found = re.search(r"(\d+) requests in ([\d.]+)(s|m)", said)
    assert found, said
    count = int(found[1])
    assert count, said
    assert "Non-2xx" not in said, said
    assert "Socket errors" not in said, said
    seconds = float(found[2]) * {"s": 1, "m": 60}[found[3]]
    return Run(count, spent_s * 1e6 / count, count / seconds, _latency_ms(said, "50%"), _latency_ms(said, "99%"))


def _latency_ms(said: str, share: str) -> float:
    found = re.search(rf"{share}\s+([\d.]+)(us|ms|s)", said)
    assert found, said
    return float(found[1]) * {"us": 0.001, "ms": 1.0, "s": 1000.0}[found[2]]


def cores() -> tuple[int, int] | None:
    """(the gateway's, everything else's); None on a machine with one."""
    found = (min(os.sched_getaffinity(0)), max(os.sched_getaffinity(0)))
    return found if found[0] != found[1] else None
