"""kill -9 of a real process that appends: every acknowledged record has exactly one row and its own bodies."""

import asyncio
import signal
import sys
from pathlib import Path
from random import Random

import msgspec
import pytest
from sqlalchemy import select

from gateway.logs.filters import LogQuery
from gateway.settings import Logs
from storage.tables import logs
from tests.gateway.logs.support import ACME, House

ROOT = Path(__file__).parents[3]


async def _killed(folder: Path, mode: str, num_acks: int) -> dict[str, int]:
    """Runs the child until it has acknowledged so many, kills it, and returns all that it acknowledged."""
    command = (sys.executable, "-m", "tests.gateway.logs.appending_child", str(folder), mode)
    child = await asyncio.create_subprocess_exec(*command, stdout=asyncio.subprocess.PIPE, cwd=ROOT)
    assert child.stdout is not None
    acked: dict[str, int] = {}
    async with asyncio.timeout(30):
        while line := await child.stdout.readline():
            if not line.endswith(b"\n"):
                break  # the kill came within the line: nobody was told
            log_id, _, number = line.decode().partition(" ")
            acked[log_id.strip()] = int(number or 0)
            if len(acked) == num_acks:
                child.send_signal(signal.SIGKILL)
        assert await child.wait() == -signal.SIGKILL
    return acked


async def _rows(folder: Path, acked: dict[str, int]) -> set[str]:
    """The ids that have a row with the right bodies."""
    async with House(folder) as house:
        store = await house.store(Logs(segment_bytes=65_536))
        await store.list(ACME, "default", LogQuery())
        async with house.database.read() as connection:
            found = list((await connection.execute(select(logs.c.id))).scalars())
        assert len(found) == len(set(found))
        known = sorted(set(found) & acked.keys())
        for log_id in Random(1).sample(known, k=min(60, len(known))):
            answer = msgspec.json.decode(await store.response_body(ACME, "default", log_id))["result"]["response"]
            assert answer == f"answer {acked[log_id]} " * (acked[log_id] % 50)
        await store.aclose()
    return set(found)


@pytest.mark.parametrize("mode", ["ack", "group"])
async def test_kill_loses_nothing_acknowledged(tmp_path: Path, mode: str) -> None:
    random = Random(mode)
    acked: dict[str, int] = {}
    for _ in range(4):
        acked |= await _killed(tmp_path, mode, random.choice((1, 20, 150, 600)))
    rows = await _rows(tmp_path, acked)
    assert acked.keys() <= rows, f"{len(acked.keys() - rows)} of {len(acked)} acknowledged records are gone"


async def test_control_acknowledged_too_early(tmp_path: Path) -> None:
    acked = await _killed(tmp_path, "early", 8)
    assert not acked.keys() <= await _rows(tmp_path, acked)
