"""What the operator's frames do in a real runtime: pins, their end, reports."""

import asyncio
from pathlib import Path

import pytest

from runtime.client import RuntimeLost
from runtime.protocol import CacheReport
from tests.runtime.serving import Serving, ask, serving


def tier(report: CacheReport, name: str) -> dict[str, int]:
    found = next(each for each in report.tiers if each.tier == name)
    return {field: getattr(found, field) for field in ("entries", "used_bytes", "hits", "misses")}


async def until_kept(running: Serving, count: int) -> None:
    async with asyncio.timeout(10):
        while len(running.service._tiers.kept) != count:
            await asyncio.sleep(0.001)


async def test_pins_hold_and_end_with_their_connection(tmp_path: Path) -> None:
    async with serving(tmp_path) as running:
        one, two, three = [await running.upload(fill) for fill in (0.1, 0.2, 0.3)]
        async with running.client() as first, running.client() as second:
            await first.wait_ready(5)
            await second.wait_ready(5)
            first.pin([one, two])
            second.pin([two, three])
            await until_kept(running, 3)
            first.pin([one])
            second.pin([])
            await until_kept(running, 1)
            assert running.service._tiers.kept == {one.digest}
            report = await second.cache_report()
            assert [(a.digest, a.pinned) for a in report.adapters if a.pinned] == [(one.digest, True)]
        await until_kept(running, 0)


async def test_pins_are_repeated_after_a_reconnect(tmp_path: Path) -> None:
    async with serving(tmp_path) as running, running.client() as client:
        await client.wait_ready(5)
        adapter = await running.upload(0.1)
        client.pin([adapter])
        connected = 0

        def told() -> None:
            nonlocal connected
            connected += 1

        client.on_connect(told)
        assert connected == 1, "it is connected"
        await until_kept(running, 1)
        running.service._tiers.unkeep(adapter.digest)
        for connection in running.service._connections.values():
            connection.cut("planted")
        async with asyncio.timeout(10):
            while connected < 2:
                await asyncio.sleep(0.001)
        await until_kept(running, 1)


async def test_a_report_tells_every_tier_and_adapter(tmp_path: Path) -> None:
    async with serving(tmp_path) as running, running.client() as client:
        await client.wait_ready(5)
        used, warmed = await running.upload(0.1), await running.upload(0.2)
        for _ in range(3):
            await ask(client, adapter=used)
        await client.prefetch(warmed)
        async with asyncio.timeout(10):
            while True:
                report = await client.cache_report()
                places = {each.digest: (each.device, each.memory, each.disk) for each in report.adapters}
                if places == {used.digest: (True, True, True), warmed.digest: (False, True, True)}:
                    break
                await asyncio.sleep(0.005)
        assert [each.tier for each in report.tiers] == ["device", "memory", "disk", "object"]
        assert tier(report, "device") == {"entries": 1, "used_bytes": 8, "hits": 2, "misses": 1}
        assert tier(report, "memory")["misses"] == 1
        assert tier(report, "object")["hits"] == 2
        assert tier(report, "disk")["entries"] == 2
        loads = {each.tier: each.loads.count for each in report.tiers}
        assert (loads["object"], loads["memory"]) == (2, 1)


async def test_ping_and_report_tell_of_start_and_graphs(tmp_path: Path) -> None:
    async with serving(tmp_path, start_s=12.5) as running, running.client(ping_interval_s=0.01) as client:
        await client.wait_ready(5)
        await running.upload(0.1)
        report = (await client.cache_report()).stats
        assert (report.start_s, report.total_blocks, report.graph_captures) == (12.5, 256, 0)
        async with asyncio.timeout(10):
            while client.stats is None:
                await asyncio.sleep(0.001)
        assert client.stats.start_s == 12.5


async def test_no_report_without_a_runtime(tmp_path: Path) -> None:
    async with serving(tmp_path, drain_s=0.0) as running, running.client() as client:
        with pytest.raises(RuntimeLost, match="does not answer"):
            await client.cache_report()
        await client.wait_ready(5)
        await running.upload(0.1)
        running.runner.gate.clear()
        busy = asyncio.create_task(ask(client))
        while not running.service._live():
            await asyncio.sleep(0.001)
        asked = asyncio.create_task(client.cache_report())
        for connection in running.service._connections.values():
            while not connection.asked_for_report:
                await asyncio.sleep(0.001)
            connection.cut("planted")
        with pytest.raises(RuntimeLost, match="went away"):
            await asked
        running.runner.gate.set()
        await asyncio.gather(busy, return_exceptions=True)


async def test_many_questions_are_one_to_the_engine(tmp_path: Path) -> None:
    async with serving(tmp_path) as running, running.client() as client:
        await client.wait_ready(5)
        reports = await asyncio.gather(*(client.cache_report() for _ in range(50)))
        assert len({report.number for report in reports}) == 1
        assert (await client.cache_report()).number > reports[0].number
