"""kill -9 of gateway and parent: nothing acknowledged is lost, nothing hangs, nothing is left behind.

The runtime's turn is in `test_faults_under_load.py`.
"""

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import httpx
import pytest

from gateway import supervisor
from gateway.runtime_config import model_folders
from gateway.settings import Server, Settings
from tests.e2e.deployment import Deployment, deploy, wait_children, wait_gone

pytestmark = pytest.mark.timeout(240)

LOGS = "/ai-gateway/gateways/default/logs"


def _pid(deployment: Deployment, name: str) -> int:
    return next(pid for process, pid in deployment.processes.items() if process.startswith(name))


def test_kill_of_the_gateway_right_after_an_answer_loses_no_log(tmp_path: Path) -> None:
    with deploy(tmp_path / "data") as deployment:
        caller = deployment.account("acme")
        answered = [caller.ask("What does Molbury sell?", stream=bool(i % 2)) for i in range(6)]
        os.kill(_pid(deployment, "gateway"), signal.SIGKILL)
        assert all(reply.status_code == 200 for reply in answered)
        ids = {reply.headers["cf-aig-log-id"] for reply in answered}
        assert len(ids) == 6
        deployment.wait_until_ready()
        with caller.http() as http:
            rows = http.get(LOGS, params={"per_page": 50}).json()["result"]
            assert {row["id"] for row in rows} == ids
            for row in rows:
                body = json.loads(http.get(f"{LOGS}/{row['id']}/request").content)
                assert body["prompt"] == "What does Molbury sell?"
                assert http.get(f"{LOGS}/{row['id']}/response").content


def test_kill_of_the_gateway_in_a_batch_costs_only_what_was_under_way(tmp_path: Path) -> None:
    number, run = 60, "/ai/run/@cf/lorikeet/demo-lora?queueRequest=true"
    requests = [{"prompt": f"Say {i}.", "max_tokens": 20, "external_reference": str(i)} for i in range(number)]
    with deploy(tmp_path / "data") as deployment, deployment.account("acme").http() as http:
        submitted = http.post(run, json={"requests": requests}).json()["result"]
        done, batch = 0, tmp_path / "data" / "objects" / "batches" / submitted["request_id"]
        until = time.monotonic() + 60
        while done < 12:
            done = sum(len(json.loads(part.read_bytes())) for part in batch.glob("part-*.json"))
            assert time.monotonic() < until
        os.kill(_pid(deployment, "gateway"), signal.SIGKILL)
        deployment.wait_until_ready()
        assert done < number - 8, "the batch was over too soon"
        while "responses" not in (result := http.post(run, json=submitted).json()["result"]):
            assert time.monotonic() < until
            time.sleep(0.05)
        assert sorted(int(answer["external_reference"]) for answer in result["responses"]) == list(range(number))
        assert all(answer["success"] for answer in result["responses"])
        logs = http.get(LOGS, params={"per_page": 1}).json()["result_info"]["total_count"]
        # Four side by side, and as many whose answers were not on disk yet, may have been answered twice.
        assert number <= logs <= number + 8


async def test_a_hung_gateway_is_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(supervisor, "LIVENESS_S", 0.3)
    settings = Settings(data_dir=str(tmp_path / "data"), server=Server(port=0))
    async with supervisor.run_stack(settings, model_folders(settings)) as stack:
        assert stack.gateway.process is not None
        pid = stack.gateway.process.pid
        os.kill(pid, signal.SIGSTOP)
        assert await asyncio.to_thread(wait_gone, [pid]) == []
        async with asyncio.timeout(30), httpx.AsyncClient(timeout=20) as http:
            assert (await http.get(f"{stack.url}/healthz")).status_code == 200


def test_kill_of_the_parent_leaves_nothing_running(tmp_path: Path) -> None:
    with deploy(tmp_path / "data") as deployment:
        os.kill(deployment.process.pid, signal.SIGKILL)
        deployment.process.wait(10)
        assert wait_gone(list(deployment.processes.values())) == []
    # And the folder can be served again at once.
    with deploy(tmp_path / "data") as deployment:
        assert httpx.get(f"{deployment.url}/healthz").status_code == 200


def _serve(tmp_path: Path, *options: str) -> subprocess.Popen[bytes]:
    """A hangup ends it, also where these tests run under `nohup`."""
    command = [sys.executable, "-m", "gateway.cli", "serve", "--port", "0", "--data-dir", str(tmp_path / "data")]
    inherited = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    try:
        return subprocess.Popen(
            [*command, *options],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,
        )
    finally:
        signal.signal(signal.SIGHUP, inherited)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT])
def test_a_signal_while_loading_leaves_nothing(tmp_path: Path, number: signal.Signals) -> None:
    with _serve(tmp_path) as process:
        children = wait_children(process.pid, 2)
        process.send_signal(number)
        _, errors = process.communicate(timeout=30)
        assert process.returncode == 0
        assert b"Traceback" not in errors
        assert wait_gone(children) == []
        assert not (tmp_path / "data" / "run").exists()


def test_a_deployment_that_follows_a_parent_ends_with_it(tmp_path: Path) -> None:
    """What the demo relies on: killed, however hard, it takes its deployment along."""
    with _serve(tmp_path, "--json", "--follow-stdin") as process:
        assert process.stdout is not None
        assert process.stdin is not None
        children = list(json.loads(process.stdout.readline())["processes"].values())
        process.stdin.close()
        assert process.wait(30) == 0
        assert wait_gone(children) == []
