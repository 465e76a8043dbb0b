"""A real deployment for tests: `lorikeet serve` as a child process, in a folder of the test's own."""

import asyncio
import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from gateway.admin_client import open_admin
from gateway.settings import Settings

START_TIMEOUT_S = 90.0
MODEL = "@cf/lorikeet/demo-lora"


@dataclass
class Deployment:
    """A running `lorikeet serve`; `processes` are the pids of its children as they were at the start.

    kv_bytes: the key/value cache of each base's runtime.
    """

    process: subprocess.Popen[str]
    data_dir: Path
    url: str
    processes: dict[str, int]
    kv_bytes: dict[str, int]

    def cli(self, *arguments: str) -> Any:
        """Runs a command with --json beside the deployment; its JSON."""
        done = subprocess.run(
            [sys.executable, "-m", "gateway.cli", *arguments, "--data-dir", str(self.data_dir), "--json"],
            capture_output=True, text=True, timeout=60, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    def account(self, name: str) -> "Caller":
        """A new account with a token that may do everything.

        Asked of the gateway as the command does it, without the two seconds that its two processes take to begin.
        """

        async def make() -> Caller:
            async with open_admin(Settings(data_dir=str(self.data_dir))) as admin:
                account = await admin.create_account(name)
                _, secret = await admin.create_token(account.id, "t")
            return Caller(self.url, account.id, secret)

        return asyncio.run(make())

    def wait_until_ready(self, timeout_s: float = 60.0) -> None:
        """Polls /readyz; a restart takes as long as it takes."""
        until = time.monotonic() + timeout_s
        while time.monotonic() < until:
            with contextlib.suppress(httpx.HTTPError):
                if httpx.get(f"{self.url}/readyz", timeout=5).status_code == 200:
                    return
            time.sleep(0.05)
        raise AssertionError("the deployment did not become ready")


@dataclass
class Caller:
    """One account's calls."""

    url: str
    account_id: str
    token: str

    @property
    def root(self) -> str:
        """Everything of the account lies below."""
        return f"{self.url}/client/v4/accounts/{self.account_id}"

    def http(self, **headers: str) -> httpx.Client:
        """A client below the account's root."""
        return httpx.Client(
            base_url=self.root, headers={"Authorization": f"Bearer {self.token}", **headers}, timeout=60
        )

    def upload(self, name: str, folder: Path) -> str:
        """Creates a finetune from a PEFT folder; its id."""
        with self.http() as http:
            created = http.post("/ai/finetunes", json={"model": MODEL, "name": name})
            assert created.status_code == 200, created.text
            finetune_id = str(created.json()["result"]["id"])
            for file_name in ("adapter_config.json", "adapter_model.safetensors"):
                reply = http.post(
                    f"/ai/finetunes/{finetune_id}/finetune-assets",
                    data={"file_name": file_name},
                    files={"file": ("blob", (folder / file_name).read_bytes(), "application/octet-stream")},
                )
                assert reply.status_code == 200, reply.text
        return finetune_id

    def ask(self, prompt: str, **body: Any) -> httpx.Response:
        """One native call at temperature 0."""
        with self.http() as http:
            return http.post(f"/ai/run/{MODEL}", json={"prompt": prompt, "temperature": 0, **body})


@contextlib.contextmanager
def deploy(data_dir: Path, **environ: str) -> Iterator[Deployment]:
    """Starts on a free port; stops with SIGTERM and expects a clean end, unless the test has killed it."""
    process = subprocess.Popen(
        [sys.executable, "-m", "gateway.cli", "serve", "--port", "0", "--data-dir", str(data_dir), "--json"],
        stdout=subprocess.PIPE, text=True, env={**os.environ, **environ}, start_new_session=True,
    )  # fmt: skip
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        assert line, f"lorikeet serve ended with {process.wait(10)}"
        ready = json.loads(line)
        yield Deployment(process, data_dir, ready["url"], ready["processes"], ready["kv_bytes"])
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
            assert process.wait(30) == 0
    finally:
        if process.poll() is None:
            process.kill()
            process.wait(10)
        if process.stdout is not None:
            process.stdout.close()


@contextlib.contextmanager
def runtime_alone(data_dir: Path, *options: str, **environ: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """`lorikeet runtime` as a child process: (process, the line about a TCP port, if any); killed at the end."""
    process = subprocess.Popen(
        [sys.executable, "-m", "gateway.cli", "runtime", *options, "--data-dir", str(data_dir)],
        stdout=subprocess.PIPE, text=True, env={**os.environ, **environ}, start_new_session=True,
    )  # fmt: skip
    try:
        assert process.stdout is not None
        lines = []
        while (line := process.stdout.readline()) and line != "ready\n":
            lines.append(line.rstrip())
        assert line, f"lorikeet runtime ended with {process.wait(10)}"
        yield process, lines[-1]
    finally:
        process.kill()
        process.wait(10)
        if process.stdout is not None:
            process.stdout.close()


def alive(pid: int) -> bool:
    """Whether the process exists and is not a zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text(encoding="ascii").rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def wait_gone(pids: list[int], timeout_s: float = 15.0) -> list[int]:
    """Waits for processes to end; returns those that did not."""
    until = time.monotonic() + timeout_s
    while (left := [pid for pid in pids if alive(pid)]) and time.monotonic() < until:
        time.sleep(0.02)
    return left


def wait_children(pid: int, count: int, timeout_s: float = 30.0) -> list[int]:
    """Waits until the process has `count` children; their pids."""
    until = time.monotonic() + timeout_s
    while time.monotonic() < until:
        found = [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text(encoding="ascii").split()]
        if len(found) >= count:
            return found
        time.sleep(0.01)
    raise AssertionError(f"process {pid} did not start {count} children")
