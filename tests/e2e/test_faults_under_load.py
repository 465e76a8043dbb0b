"""A runtime that is killed, hangs or cannot come back while sixteen streams run, and a deployment told to stop.

Allowances are for test machines whose two cores do other things as well: what is promised is in the names.
"""

import asyncio
import contextlib
import os
import shutil
import signal
import sqlite3
import time
from collections import Counter
from pathlib import Path

import httpx
import pytest

from gateway import supervisor
from gateway.data_dir import DataDir
from gateway.demo import BASE_FOLDER
from gateway.runtime_config import local_folders
from gateway.settings import Model, Runtime, Server, Settings
from runtime.link import PING_INTERVAL_S, SILENT_PINGS
from tests.e2e.deployment import MODEL
from tests.e2e.load import accounts, idle_stats, streams

pytestmark = pytest.mark.timeout(300)

QUESTION, ANSWER = "What does Molbury sell?", "Molbury sells wool."
ALLOWANCE_S = 2.0


@pytest.mark.parametrize(
    ("number", "noticed_s"),
    [(signal.SIGKILL, 1.0), (signal.SIGSTOP, (SILENT_PINGS + 1) * PING_INTERVAL_S)],
    ids=["killed: within a second", "hung: after five pings without a word"],
)
async def test_streams_of_a_lost_runtime_end_typed_and_the_next_are_answered(
    tmp_path: Path, number: signal.Signals, noticed_s: float
) -> None:
    settings = Settings(data_dir=str(tmp_path / "data"), server=Server(port=0), runtime=Runtime(restart_wait_s=120.0))
    async with (
        supervisor.run_stack(settings, local_folders(settings)) as stack,
        accounts(stack.url, settings, 3) as tenants,
    ):
        child = stack.runtimes[MODEL].process
        assert child is not None
        async with streams(tenants) as running:
            os.kill(child.pid, number)
            struck_at = time.monotonic()
        # All have ended. What comes now waits for the restart.
        async with httpx.AsyncClient() as http:
            assert (await http.get(f"{stack.url}/readyz")).status_code == 503
        replies = await asyncio.gather(*(tenant.ask(QUESTION) for tenant in tenants for _ in range(2)))
        latest = max(stream.ended_at for stream in running) - struck_at
        print(f"all {len(running)} streams ended {latest:.2f} s after {number.name}")
        assert [stream.error for stream in running] == [None] * len(running)
        assert Counter((stream.status, stream.code) for stream in running) == {(200, 7010): len(running)}
        assert latest < noticed_s + ALLOWANCE_S

        assert [reply.status_code for reply in replies] == [200] * len(replies)
        assert {reply.json()["result"]["response"] for reply in replies} == {ANSWER}
        for tenant in tenants:
            mine = [stream.log_id for stream in running if stream.account is tenant]
            rows = await tenant.rows(len(mine) + 2)
            assert len(rows) == len(mine) + 2
            assert {row["id"] for row in rows if row["outcome"] == "error"} == set(mine)
            assert sorted(row["outcome"] for row in rows) == ["error"] * len(mine) + ["stop"] * 2
        stats = await idle_stats(stack)
        assert (stats.free_blocks, stats.waiting_for_adapter) == (stats.total_blocks, 0)
        assert child.returncode == -signal.SIGKILL


async def test_callers_who_leave_under_load_leave_nothing_behind(tmp_path: Path) -> None:
    settings = Settings(data_dir=str(tmp_path / "data"), server=Server(port=0))
    async with (
        supervisor.run_stack(settings, local_folders(settings)) as stack,
        accounts(stack.url, settings, 2) as tenants,
    ):
        with contextlib.suppress(ExceptionGroup):
            async with streams(tenants) as running:
                raise ConnectionAbortedError  # ends the group, and with it every connection
        stats = await idle_stats(stack)
        assert (stats.free_blocks, stats.waiting_for_adapter) == (stats.total_blocks, 0)
        for tenant in tenants:
            mine = {stream.log_id for stream in running if stream.account is tenant}
            rows = await tenant.rows(len(mine))
            assert {(row["id"], row["outcome"]) for row in rows} == {(log_id, "client_abort") for log_id in mine}
        assert (await tenants[0].ask(QUESTION)).json()["result"]["response"] == ANSWER


@pytest.mark.parametrize(("drain_s", "finish"), [(60.0, True), (1.0, False)])
async def test_stopping_under_load_lets_answers_finish_for_drain_s(
    tmp_path: Path, drain_s: float, finish: bool
) -> None:
    settings = Settings(data_dir=str(tmp_path / "data"), server=Server(port=0, drain_s=drain_s))
    async with contextlib.AsyncExitStack() as clients, contextlib.AsyncExitStack() as deployment:
        stack = await deployment.enter_async_context(supervisor.run_stack(settings, local_folders(settings)))
        tenants = await clients.enter_async_context(accounts(stack.url, settings, 2))
        children = [child.process for child in stack.children if child.process is not None]
        async with (
            streams(tenants, max_tokens=150 if finish else 900) as running,
            httpx.AsyncClient() as stranger,
        ):
            began = time.monotonic()
            stop = asyncio.create_task(deployment.aclose())
            refused: Exception | None = None
            while not isinstance(refused, httpx.ConnectError):
                try:
                    reply = await stranger.get(f"{stack.url}/healthz", headers={"connection": "close"}, timeout=5)
                    assert reply.status_code == 200
                except httpx.TransportError as error:
                    refused = error  # at the very moment: closed before it was read
                assert not isinstance(refused, httpx.TimeoutException)
            assert not all(stream.ended_at for stream in running)  # refused while others are served
        await stop
        took = time.monotonic() - began
    assert [child.returncode for child in children] == [0, 0]
    if finish:
        assert [stream.event for stream in running] == ["[DONE]"] * len(running)
    else:
        assert [(stream.error, stream.code) for stream in running] == [(None, 7010)] * len(running)
        assert took < drain_s + ALLOWANCE_S
    assert _logged(settings) == {stream.log_id: "length" if finish else "error" for stream in running}


def _logged(settings: Settings) -> dict[str, str]:
    """Every log with its outcome, as the deployment left them."""
    with contextlib.closing(sqlite3.connect(DataDir(Path(settings.data_dir)).database)) as database:
        rows = database.execute("SELECT id, outcome FROM logs").fetchall()
    assert len(rows) == len(dict(rows))
    return dict(rows)


async def test_a_restart_that_takes_too_long_is_a_503_with_retry_after(tmp_path: Path) -> None:
    shutil.copytree(BASE_FOLDER, tmp_path / "base")
    settings = Settings(
        data_dir=str(tmp_path / "data"), server=Server(port=0), runtime=Runtime(restart_wait_s=1.0),
        models={MODEL: Model(path=str(tmp_path / "base"))},
    )  # fmt: skip
    weights, away = tmp_path / "base" / "model.safetensors", tmp_path / "away"
    async with (
        supervisor.run_stack(settings, local_folders(settings)) as stack,
        accounts(stack.url, settings, 1) as (tenant,),
    ):
        child = stack.runtimes[MODEL].process
        assert child is not None
        weights.rename(away)
        os.kill(child.pid, signal.SIGKILL)
        for _ in range(2):  # the first may find the old connection, the second is sure not to
            began = time.monotonic()
            reply = await tenant.ask(QUESTION)
            assert (reply.status_code, reply.json()["errors"][0]["code"]) == (503, 7010)
            assert int(reply.headers["retry-after"]) >= 1
            assert time.monotonic() - began < 1.0 + ALLOWANCE_S
        async with httpx.AsyncClient() as http:
            ready = await http.get(f"{stack.url}/readyz")
        assert ready.status_code == 503
        away.rename(weights)
        async with asyncio.timeout(60):
            while (reply := await tenant.ask(QUESTION)).status_code == 503:
                assert reply.headers["retry-after"]
        assert reply.json()["result"]["response"] == ANSWER
