"""A real runtime process with the demo's base: start, answer, drain, die, and never outlive its parent."""

import asyncio
import json
import os
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from runtime.client import RuntimeClient, RuntimeLost
from runtime.config import RuntimeConfig
from runtime.errors import ConfigInvalid
from runtime.link import PING_INTERVAL_S, SILENT_PINGS
from runtime.process import _tiers
from runtime.protocol import EXIT_CONFIG, SequenceOutput
from storage.errors import StorageUnavailable
from tests.runtime.serving import ask, sampling
from tests.storage.objects.fault_proxy import before

BASE = Path(__file__).parents[2] / "gateway" / "demo" / "data" / "base"


def config(folder: Path, **changes: Any) -> RuntimeConfig:
    values = {
        "model": "@cf/lorikeet/demo-lora",
        "model_folder": str(BASE),
        "threads": 1,
        "kv_bytes": 16 * 1024**2,
        "socket_path": str(folder / "r.sock"),
        "token": "s3cret",
        "objects_root": str(folder / "objects"),
        "tier_dir": str(folder / "tier"),
        "drain_s": 10.0,
    }
    return RuntimeConfig(**{**values, **changes})


class Child:
    """The process, with everything it printed on standard output."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self.process = process
        self.lines: list[str] = []

    async def ready(self) -> None:
        assert self.process.stdout is not None
        async with asyncio.timeout(60):
            while line := (await self.process.stdout.readline()).decode().rstrip():
                self.lines.append(line)
                if line == "ready":
                    return
        raise AssertionError(f"ended before it was ready: {self.lines}")

    async def ended(self) -> int:
        async with asyncio.timeout(30):
            return await self.process.wait()

    async def errors(self) -> str:
        assert self.process.stderr is not None
        return (await self.process.stderr.read()).decode()


@asynccontextmanager
async def child(text: bytes, *argv: str) -> AsyncIterator[Child]:
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "runtime",
        *argv,
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        cwd=Path(__file__).parents[2],
    )
    assert process.stdin is not None
    try:
        with suppress(ConnectionError):
            process.stdin.write(text)
            await process.stdin.drain()
        yield Child(process)
    finally:
        process.stdin.close()
        with suppress(ProcessLookupError):
            process.kill()
        await process.communicate()


async def _rest(outputs: AsyncIterator[SequenceOutput]) -> SequenceOutput:
    """The last output."""
    async for output in outputs:
        last = output
    return last


async def test_it_answers_and_drains_on_sigterm(tmp_path: Path) -> None:
    async with child(config(tmp_path).to_json() + b"\n") as runtime:
        await runtime.ready()
        assert runtime.lines[-2] == "loading @cf/lorikeet/demo-lora: 100 %"
        async with RuntimeClient(socket_path=tmp_path / "r.sock", token="s3cret", gateway_id="g") as client:
            model = await client.wait_ready(10)
            assert (model.name, model.max_rank) == ("@cf/lorikeet/demo-lora", 512)
            first, last = await ask(client, sampling=sampling(12))
            again, _ = await ask(client, sampling=sampling(12))
            assert first == again
            assert last.finish_reason in ("stop", "length")
            outputs = client.submit(account_id="a", token_ids=[5] * 40, sampling=sampling(400))
            await anext(outputs)
            runtime.process.send_signal(signal.SIGTERM)
            assert (await _rest(outputs)).finish_reason in ("stop", "length")
        assert await runtime.ended() == 0
        assert not (tmp_path / "r.sock").exists()
        assert "s3cret" not in await runtime.errors()


async def test_kill_ends_waiting_streams_within_a_second(tmp_path: Path) -> None:
    async with child(config(tmp_path).to_json() + b"\n") as runtime:
        await runtime.ready()
        async with RuntimeClient(socket_path=tmp_path / "r.sock", token="s3cret", gateway_id="g") as client:
            await client.wait_ready(10)
            runtime.process.send_signal(signal.SIGSTOP)
            outputs = client.submit(account_id="a", token_ids=[5], sampling=sampling(900))
            waiting = asyncio.create_task(_rest(outputs))
            await asyncio.sleep(0)
            runtime.process.kill()
            with pytest.raises(RuntimeLost):
                await asyncio.wait_for(waiting, 1)


async def test_a_frozen_process_ends_its_streams_as_soon_as_it_is_silent(tmp_path: Path) -> None:
    hung: list[int] = []
    async with child(config(tmp_path).to_json() + b"\n") as runtime:
        await runtime.ready()
        async with RuntimeClient(
            socket_path=tmp_path / "r.sock", token="s3cret", gateway_id="g", on_hung=hung.append
        ) as client:
            await client.wait_ready(10)
            outputs = client.submit(account_id="a", token_ids=[5], sampling=sampling(900))
            await anext(outputs)
            runtime.process.send_signal(signal.SIGSTOP)
            with pytest.raises(RuntimeLost, match="said nothing to 5 pings"):
                await asyncio.wait_for(_rest(outputs), (SILENT_PINGS + 1) * PING_INTERVAL_S + 1.0)
            assert hung == [runtime.process.pid]
            runtime.process.send_signal(signal.SIGCONT)
            await client.wait_ready(10)
            assert (await ask(client, sampling=sampling(3)))[1].finish_reason in ("stop", "length")


async def test_it_leaves_when_its_parents_pipe_closes(tmp_path: Path) -> None:
    async with child(config(tmp_path).to_json() + b"\n") as runtime:
        await runtime.ready()
        assert runtime.process.stdin is not None
        os.kill(runtime.process.pid, signal.SIGSTOP)
        runtime.process.stdin.close()
        os.kill(runtime.process.pid, signal.SIGCONT)
        assert await runtime.ended() == 1
        assert not (tmp_path / "r.sock").exists()


async def test_settings_that_cannot_be_used_end_it_with_a_sentence(tmp_path: Path) -> None:
    async with child(b'{"model":"m","model_folder":"x","tier_dir":"t","nope":1}\n') as runtime:
        assert await runtime.ended() == EXIT_CONFIG
        errors = await runtime.errors()
        assert "nope" in errors
        assert "Traceback" not in errors


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (b"", "runtime configuration"),
        (b"{}", "missing required field"),
        (b"not json", "runtime configuration"),
        (b'{"model":"m","model_folder":"x","tier_dir":"t","socket_path":"s","threads":-1}', "threads"),
        (b'{"model":"m","model_folder":"x","tier_dir":"t"}', "socket_path or host"),
    ],
)
def test_a_bad_configuration_says_what_is_wrong(text: bytes, words: str) -> None:
    with pytest.raises(ConfigInvalid, match=words):
        RuntimeConfig.from_json(text)


async def test_weights_that_cannot_be_used_end_it_with_a_sentence(tmp_path: Path) -> None:
    file = tmp_path / "config.json"
    file.write_bytes(config(tmp_path, model_folder=str(tmp_path / "nothing")).to_json())
    async with child(b"", "--config", str(file)) as runtime:
        assert await runtime.ended() == EXIT_CONFIG
        errors = await runtime.errors()
        assert "nothing" in errors
        assert "Traceback" not in errors


async def test_a_store_that_is_down_is_not_asked_without_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The budget of retries is that of all questions: no layer below asks again by itself."""
    monkeypatch.setattr("storage.downloads.FIRST_PAUSE_S", 0.0)
    async with before(1) as proxy:
        proxy.always = "throttle"
        config = RuntimeConfig(
            model="m", model_folder="-", tier_dir=str(tmp_path / "tier"), objects="s3", bucket="b", token="t",
            endpoint=proxy.endpoint, access_key_id="a", secret_access_key="s", socket_path="-",
        )  # fmt: skip
        async with _tiers(config) as tiers, asyncio.timeout(30):
            wanted = [f"{number:064x}" for number in range(20)]
            asked = (tiers.fetch(digest, f"adapters/{digest}", 1000) for digest in wanted)
            results = await asyncio.gather(*asked, return_exceptions=True)
            assert [type(each) for each in results] == [StorageUnavailable] * 20
            retries = tiers.stats()["object"].retries
        assert 10 <= retries <= 14
        assert len(proxy.gets) == 20 + retries


def test_secrets_are_never_shown(tmp_path: Path) -> None:
    shown = repr(config(tmp_path, secret_access_key="k3y"))
    assert "s3cret" not in shown
    assert "k3y" not in shown
    assert "model_folder" in shown


def test_a_refused_configuration_does_not_repeat_its_secrets(tmp_path: Path) -> None:
    values = json.loads(config(tmp_path, secret_access_key="k3y").to_json())
    for name in values:
        with pytest.raises(ConfigInvalid) as caught:
            RuntimeConfig.from_json(json.dumps({**values, name: ["s3cret", "k3y"]}).encode())
        assert "s3cret" not in str(caught.value)
        assert "k3y" not in str(caught.value)


@pytest.mark.parametrize(
    "changes",
    [
        {"host": "127.0.0.1"},
        {"socket_path": ""},
        {"socket_path": "", "host": "127.0.0.1", "token": ""},
        {"objects_root": ""},
        {"objects": "s3"},
    ],
)
def test_contradictions_are_refused(tmp_path: Path, changes: dict[str, Any]) -> None:
    with pytest.raises(ConfigInvalid):
        config(tmp_path, **changes).check()


def test_a_configuration_survives_the_pipe(tmp_path: Path) -> None:
    whole = config(tmp_path, socket_path="", host="127.0.0.1", port=9)
    assert RuntimeConfig.from_json(whole.to_json()) == whole
    assert b"\n" not in whole.to_json()
