"""The gateway's end: a runtime that does not answer is noticed, one that only takes long is not."""

import asyncio
import contextlib
import os
from pathlib import Path

import pytest

from runtime.client import RuntimeClient, RuntimeLost
from runtime.link import SILENT_PINGS
from tests.runtime.fakes import answer, submit
from tests.runtime.serving import TOKEN, ask, serving


async def test_a_hung_engine_is_noticed_and_told(tmp_path: Path) -> None:
    hung: list[int] = []
    async with (
        serving(tmp_path) as running,
        running.client(ping_interval_s=0.05, max_missed_pongs=3, on_hung=hung.append) as client,
    ):
        await client.wait_ready(5)
        running.runner.gate.clear()
        with pytest.raises(RuntimeLost, match="engine answered none of 3 pings"):
            await ask(client)
        assert hung == [os.getpid()]
        running.runner.gate.set()
        await client.wait_ready(5)
        tokens, _ = await ask(client)
        assert tokens == answer(submit(1))


async def test_a_long_step_is_no_hung_process(tmp_path: Path) -> None:
    hung: list[int] = []
    async with (
        serving(tmp_path) as running,
        running.client(ping_interval_s=0.02, max_missed_pongs=1000, on_hung=hung.append) as client,
    ):
        await client.wait_ready(5)
        running.runner.gate.clear()
        task = asyncio.create_task(ask(client))
        async with asyncio.timeout(10):
            while client._link._unanswered < 4 * SILENT_PINGS:
                await asyncio.sleep(0.001)
        running.runner.gate.set()
        assert (await task)[0] == answer(submit(1))
        assert hung == []


async def test_a_frozen_process_is_noticed_before_it_says_welcome(tmp_path: Path) -> None:
    hung, silent = asyncio.Event(), tmp_path / "silent.sock"

    async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError):
            await reader.read()
        writer.close()

    server = await asyncio.start_unix_server(accept, str(silent))
    async with (
        server,
        RuntimeClient(
            socket_path=silent, token=TOKEN, gateway_id="g", connect_timeout_s=0.05, on_hung=lambda pid: hung.set()
        ) as client,
    ):
        async with asyncio.timeout(5):
            await hung.wait()
        assert not client.ready
