"""Runtimes that run elsewhere: two gateways on one, one gateway on two, and what is not taken for a runtime."""

import asyncio
import contextlib
import json
import os
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from gateway.demo import ADAPTERS_FOLDER, BASE_FOLDER
from runtime.client import RuntimeClient
from runtime.protocol import Stats
from tests.e2e.deployment import MODEL, Caller, Deployment, deploy, runtime_alone

pytestmark = pytest.mark.timeout(240)

QUESTION, ANSWER = "What does Molbury sell?", "Molbury sells wool."
TOKEN = "a secret of enough characters"
SECOND = "@cf/ours/second"
LONG = {"prompt": "x", "raw": True, "stream": True, "max_tokens": 700, "temperature": 5, "seed": 3}


class Reader:
    """A stream read by a thread of its own: what came, and when it ended."""

    def __init__(self, caller: Caller, model: str = MODEL) -> None:
        self.data: list[str] = []
        self.started = threading.Event()
        self.broken: Exception | None = None
        self._caller, self._model = caller, model
        self._thread = threading.Thread(target=self._read)
        self._thread.start()

    def _read(self) -> None:
        try:
            with self._caller.http() as http, http.stream("POST", f"/ai/run/{self._model}", json=LONG) as reply:
                for line in reply.iter_lines():
                    if line.startswith("data: "):
                        self.data.append(line.removeprefix("data: "))
                        self.started.set()
        except httpx.HTTPError as error:
            self.broken = error

    def join(self) -> list[str]:
        """Everything, once it has ended."""
        self._thread.join(60)
        assert not self._thread.is_alive()
        return self.data


def _address(line: str) -> str:
    return f"tcp://{line.removeprefix('listening on ')}"


def _settings(path: Path, model: str, address: str, folder: Path = BASE_FOLDER) -> str:
    path.write_text(f'[models."{model}"]\npath = "{folder}"\naddress = "{address}"\n')
    return str(path)


def _stats(address: str) -> Stats:
    """As soon as nothing runs any more."""

    async def ask() -> Stats:
        host, _, port = address.removeprefix("tcp://").rpartition(":")
        async with RuntimeClient(host=host, port=int(port), token=TOKEN, gateway_id="test") as client:
            await client.wait_ready(10)
            async with asyncio.timeout(20):
                while client.stats is None or client.stats.running or client.stats.waiting:
                    await asyncio.sleep(0.05)
            return client.stats

    return asyncio.run(ask())


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Any, str, list[Deployment], dict[str, str]]]:
    """(runtime process, its address, two deployments on it, their settings), with one store of objects.

    The second test that uses it kills the runtime.
    """
    tmp_path = tmp_path_factory.mktemp("shared")
    environ = {"LORIKEET_RUNTIME__TOKEN": TOKEN, "LORIKEET_STORAGE__PATH": str(tmp_path / "objects")}
    with (
        runtime_alone(tmp_path / "r", "--listen", "tcp://127.0.0.1:0", **environ) as (process, line),
        contextlib.ExitStack() as stack,
    ):
        environ["LORIKEET_CONFIG"] = _settings(tmp_path / "lorikeet.toml", MODEL, _address(line))
        environ["LORIKEET_RUNTIME__RESTART_WAIT_S"] = "1.5"
        gateways = [stack.enter_context(deploy(tmp_path / name, **environ)) for name in ("a", "b")]
        for gateway in gateways:
            gateway.wait_until_ready()
            assert list(gateway.processes) == ["gateway"]
        yield process, _address(line), gateways, environ


Shared = tuple[Any, str, list[Deployment], dict[str, str]]


def test_two_gateways_share_one_runtime(shared: Shared) -> None:
    process, address, gateways, _ = shared
    callers = [gateway.account("acme") for gateway in gateways]
    callers[0].upload("mine", ADAPTERS_FOLDER / "tides-json")
    callers[1].upload("mine", ADAPTERS_FOLDER / "tides-pirate")
    answers = [caller.ask(QUESTION, lora="mine").json()["result"]["response"] for caller in callers]
    assert answers[0] == '{"town": "Molbury", "answer": "wool"}'
    assert answers[1] not in (ANSWER, answers[0])
    # The cache of one gateway's account is not found by the other's, though both ask the same of the same base.
    cached = []
    for caller in (callers[0], callers[0], callers[1], callers[1]):
        usage = caller.ask(QUESTION * 20, max_tokens=1).json()["result"]["usage"]
        cached.append(usage.get("prompt_tokens_details", {}).get("cached_tokens", 0))
    assert [bool(tokens) for tokens in cached] == [False, True, False, True]

    # A gateway that is killed in the middle frees what it had and does not disturb the other.
    readers = [Reader(caller) for caller in callers]
    assert all(reader.started.wait(30) for reader in readers)
    os.kill(gateways[0].processes["gateway"], signal.SIGKILL)
    assert readers[1].join()[-1] == "[DONE]"
    assert readers[0].join()[-1] != "[DONE]"
    stats = _stats(address)
    assert (stats.free_blocks, stats.waiting_for_adapter) == (stats.total_blocks, 0)
    gateways[0].wait_until_ready()
    assert callers[0].ask(QUESTION).json()["result"]["response"] == ANSWER
    assert process.poll() is None


def test_a_runtime_elsewhere_that_hangs_or_dies_is_waited_for_and_left_alone(shared: Shared, tmp_path: Path) -> None:
    process, _, (gateway, _), environ = shared
    caller = gateway.account("patient")
    reader = Reader(caller)
    assert reader.started.wait(30)
    process.send_signal(signal.SIGSTOP)
    stopped = time.monotonic()
    assert json.loads(reader.join()[-1])["errors"][0]["code"] == 7010
    assert time.monotonic() - stopped < 5  # five pings of a quarter second without a word
    reply = caller.ask(QUESTION)
    assert (reply.status_code, reply.json()["errors"][0]["code"]) == (503, 7010)
    assert int(reply.headers["retry-after"]) >= 1
    assert httpx.get(f"{gateway.url}/readyz").status_code == 503
    process.send_signal(signal.SIGCONT)
    gateway.wait_until_ready()
    assert caller.ask(QUESTION).json()["result"]["response"] == ANSWER

    process.kill()
    process.wait()
    reply = caller.ask(QUESTION)
    assert (reply.status_code, "retry-after" in reply.headers) == (503, True)
    with runtime_alone(tmp_path / "r", **environ) as (again, _):  # where the settings say
        gateway.wait_until_ready()
        assert caller.ask(QUESTION).json()["result"]["response"] == ANSWER
        again.send_signal(signal.SIGTERM)
        assert again.wait(20) == 0


def test_of_two_runtimes_one_dies_alone(tmp_path: Path) -> None:
    (tmp_path / "lorikeet.toml").write_text(f'[models."{SECOND}"]\npath = "{BASE_FOLDER}"\n')
    with deploy(tmp_path / "data", LORIKEET_CONFIG=str(tmp_path / "lorikeet.toml")) as deployment:
        caller = deployment.account("acme")
        untouched, struck = Reader(caller), Reader(caller, SECOND)
        assert untouched.started.wait(30)
        assert struck.started.wait(30)
        os.kill(deployment.processes[f"runtime {SECOND}"], signal.SIGKILL)
        assert json.loads(struck.join()[-1])["errors"][0]["code"] == 7010
        assert caller.ask(QUESTION).json()["result"]["response"] == ANSWER
        assert untouched.join()[-1] == "[DONE]"
        deployment.wait_until_ready()
        with caller.http() as http:
            reply = http.post(f"/ai/run/{SECOND}", json={"prompt": QUESTION, "temperature": 0})
        assert reply.json()["result"]["response"] == ANSWER


def test_the_wrong_runtime_is_no_runtime(tmp_path: Path) -> None:
    for file in BASE_FOLDER.glob("*.json"):  # a gateway needs no weights of a runtime elsewhere
        (tmp_path / file.name).write_bytes(file.read_bytes())
    options = ("--listen", f"unix:{tmp_path / 'r.sock'}")
    with runtime_alone(tmp_path / "r", *options, LORIKEET_RUNTIME__TOKEN=TOKEN):
        text = "".join(
            f'[models."{name}"]\npath = "{tmp_path}"\naddress = "unix:{tmp_path / "r.sock"}"\ntoken = "{token}"\n'
            for name, token in ((MODEL, "wrong"), (SECOND, TOKEN))
        )
        (tmp_path / "lorikeet.toml").write_text(text)
        environ = {"LORIKEET_CONFIG": str(tmp_path / "lorikeet.toml"), "LORIKEET_RUNTIME__RESTART_WAIT_S": "0.5"}
        with deploy(tmp_path / "data", **environ) as deployment:
            with deployment.account("acme").http() as http:
                for name in (MODEL, SECOND):
                    reply = http.post(f"/ai/run/{name}", json={"prompt": QUESTION})
                    assert (reply.status_code, reply.json()["errors"][0]["code"]) == (503, 7010)
                    assert reply.headers["retry-after"]
            missing = sorted(httpx.get(f"{deployment.url}/readyz").json()["missing"])
            assert [line.partition(": ")[0] for line in missing] == [MODEL, SECOND]
            assert "wrong token" in missing[0]
            assert f"it serves {MODEL} and not {SECOND}" in missing[1]


def test_the_runtime_command_shows_no_secret(tmp_path: Path) -> None:
    (tmp_path / "token").write_text(TOKEN)
    (tmp_path / "token").chmod(0o600)
    options = ("--listen", "tcp://127.0.0.1:0", "--token-file", str(tmp_path / "token"))
    with runtime_alone(tmp_path / "r", *options) as (process, _):
        for shown in ("environ", "cmdline"):
            assert TOKEN.encode() not in Path(f"/proc/{process.pid}/{shown}").read_bytes()
