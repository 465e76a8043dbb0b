"""The gateway process of a deployment beside a mock runtime: real settings, real log on disk, one core of its own."""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import httpx
import msgspec

from gateway.data_dir import DataDir
from gateway.demo import BASE_FOLDER
from gateway.gateway_config import GatewayConfig
from gateway.logs.segment import SUFFIX
from gateway.settings import DEMO_MODEL, Settings

ROOT: Final = Path(__file__).parents[2]
_TICKS: Final = os.sysconf("SC_CLK_TCK")


@dataclass
class Stage:
    """A gateway that answers. `pid`: its process. `folder`: its data. `runtime_socket`: where the mock listens."""

    url: str
    account_id: str
    token: str
    pid: int
    folder: Path
    runtime_socket: Path

    @property
    def root(self) -> str:
        """Everything of the account lies below."""
        return f"{self.url}/client/v4/accounts/{self.account_id}"

    def cpu_s(self) -> float:
        """CPU seconds of the gateway so far, all threads, its writer of logs included."""
        fields = Path(f"/proc/{self.pid}/stat").read_text(encoding="ascii").rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / _TICKS

    def log_bytes(self) -> int:
        """The length of its log's segments."""
        return sum(path.stat().st_size for path in DataDir(self.folder).logs.glob(f"*{SUFFIX}"))

    def memory_bytes(self) -> int:
        """Resident memory of the gateway."""
        pages = int(Path(f"/proc/{self.pid}/statm").read_text(encoding="ascii").split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE")


class BareStage(Stage):
    """No accounts, no data and no runtime."""

    @property
    def root(self) -> str:
        """Everything."""
        return self.url


@contextlib.contextmanager
def stage(
    folder: Path, cores: tuple[int, int] | None, durability: str = "ack", stream_gap_ms: float | None = None
) -> Iterator[Stage]:
    """`cores`: (the gateway's, everything else's); None on a machine with one. `stream_gap_ms` None: the default."""
    server = {"body_buffer_bytes": 2**30} | ({} if stream_gap_ms is None else {"stream_gap_ms": stream_gap_ms})
    vocab = json.loads((BASE_FOLDER / "config.json").read_bytes())["vocab_size"]
    data_dir, runtime_socket = folder / "data", folder / "runtime.sock"
    settings = msgspec.convert(
        {"data_dir": str(data_dir), "logs": {"durability": durability}, "server": server},
        Settings,
    )
    mock = subprocess.Popen(
        [*_pinned(cores and cores[1]), sys.executable, "-m", "infra.bench.mock_runtime", str(runtime_socket),
         str(vocab)],
        cwd=ROOT, stdout=subprocess.PIPE,
    )  # fmt: skip
    listener = socket.create_server(("127.0.0.1", 0), backlog=4096)
    gateway: subprocess.Popen[bytes] | None = None
    try:
        assert mock.stdout is not None
        mock.stdout.readline()
        config = GatewayConfig(settings, listener.fileno(), {DEMO_MODEL: str(runtime_socket)}, "bench")
        os.set_inheritable(listener.fileno(), True)
        gateway = subprocess.Popen(
            [*_pinned(cores and cores[0]), sys.executable, "-m", "gateway.process"], cwd=ROOT, stdin=subprocess.PIPE,
            stdout=subprocess.PIPE, pass_fds=(listener.fileno(),), env={**os.environ, "PYTHONWARNINGS": "ignore"},
        )  # fmt: skip
        assert gateway.stdin is not None
        assert gateway.stdout is not None
        gateway.stdin.write(msgspec.json.encode(config) + b"\n")
        gateway.stdin.flush()
        assert gateway.stdout.readline() == b"ready\n", "the gateway did not start"
        account_id = _cli(data_dir, "accounts", "create", "bench")["id"]
        token = _cli(data_dir, "tokens", "create", account_id)["token"]
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        _wait_ready(url)
        yield Stage(url, account_id, token, gateway.pid, data_dir, runtime_socket)
    finally:
        if gateway is not None:
            gateway.send_signal(signal.SIGTERM)
            gateway.wait(30)
        mock.kill()
        mock.wait()
        listener.close()


@contextlib.contextmanager
def bare_stage(cores: tuple[int, int] | None) -> Iterator[BareStage]:
    """`bare_app` in the gateway's place; its root is its only path."""
    with socket.create_server(("127.0.0.1", 0), backlog=4096) as listener:
        bare = subprocess.Popen(
            [*_pinned(cores and cores[0]), sys.executable, "-m", "infra.bench.bare_app", str(listener.fileno())],
            cwd=ROOT, stdout=subprocess.PIPE, pass_fds=(listener.fileno(),),
        )  # fmt: skip
        try:
            assert bare.stdout is not None
            assert bare.stdout.readline() == b"ready\n", "the bare application did not start"
            yield BareStage(f"http://127.0.0.1:{listener.getsockname()[1]}", "", "", bare.pid, Path(), Path())
        finally:
            bare.kill()
            bare.wait()


def _pinned(core: int | None) -> list[str]:
    return [] if core is None else ["taskset", "-c", str(core)]


def _cli(data_dir: Path, *arguments: str) -> dict[str, str]:
    said = subprocess.run(
        [sys.executable, "-m", "gateway.cli", *arguments, "--data-dir", str(data_dir), "--json"],
        capture_output=True, text=True, check=True, cwd=ROOT,
    )  # fmt: skip
    found: dict[str, str] = json.loads(said.stdout)
    return found


def _wait_ready(url: str) -> None:
    for _ in range(200):
        if httpx.get(f"{url}/readyz").status_code == 200:
            return
        time.sleep(0.05)
    raise RuntimeError("the gateway did not become ready")
