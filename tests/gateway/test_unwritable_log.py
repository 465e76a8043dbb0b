"""A disk that takes no log records: nothing is begun whose record would be refused, `/readyz` says so to balancers, and
all goes on by itself when there is room again."""

import asyncio
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from gateway.backends.fake import FakeBackend
from gateway.errors import LorikeetError
from gateway.settings import DEMO_MODEL
from tests.gateway.stack import CHAT, RUN, Stack, open_stack
from tests.gateway.test_batches import finished, submit
from tests.gateway.test_full_disk import fill
from tests.small_disk import mounted

LOGS = "/client/v4/accounts/{}/ai-gateway/gateways/default/logs"
ASKED = {"prompt": "one two"}


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    with mounted(tmp_path / "small", "6m") as folder:
        yield folder


async def until_ready(stack: Stack) -> None:
    async with asyncio.timeout(20):
        while (await stack.client.get("/readyz")).status_code != 200:
            await asyncio.sleep(0.01)


@pytest.mark.parametrize("durability", ["ack", "group"])
async def test_a_full_disk(small_disk: Path, durability: str) -> None:
    fake = FakeBackend()
    async with open_stack(small_disk, fake, settings={"logs": {"durability": durability}}) as stack:
        assert (await stack.post(RUN, ASKED)).status_code == 200
        assert (await stack.client.get("/readyz")).status_code == 200
        await stack.client.get(LOGS.format(stack.account))  # the rows are written, and their room is taken
        fill(small_disk)
        # The page at the end of the segment has room for a few records more: the first that is refused says it.
        async with asyncio.timeout(20):
            while (answer := await stack.post(RUN, ASKED)).status_code == 200:
                fill(small_disk)  # what the row store gave back meanwhile
        assert (answer.status_code, answer.json()["errors"][0]["code"]) == (503, 7011)
        unready = await stack.client.get("/readyz")
        assert unready.status_code == 503
        assert "log: it takes no records" in unready.json()["missing"][0]
        assert "No space left" in unready.json()["missing"][0]

        begun = len(fake.requests)
        for path, body in ((RUN, ASKED), (RUN, {**ASKED, "stream": True}), (CHAT, _chat())):
            refused = await stack.post(path, body)
            assert refused.status_code == 503
            assert int(refused.headers["retry-after"]) >= 1
            assert "small" not in refused.text
        assert len(fake.requests) == begun, "computed for nobody"
        unlogged = await stack.post(RUN, ASKED, headers={"cf-aig-collect-log": "false"})
        assert unlogged.status_code == 200, "who wants no record needs no disk"

        (small_disk / "junk").unlink()
        await until_ready(stack)
        assert (await stack.post(RUN, ASKED)).status_code == 200
        logs = (await stack.client.get(LOGS.format(stack.account))).json()["result"]
        assert len(logs) == begun, "the refused one has none, each answered one has"
    assert not (small_disk / "data" / "logs" / "probe").exists()


def _chat() -> dict[str, Any]:
    return {"model": DEMO_MODEL, "messages": [{"role": "user", "content": "x"}], "stream": True}


async def test_one_record_that_is_too_large_stops_nobody_else(small_disk: Path) -> None:
    async with open_stack(small_disk) as stack:
        fill(small_disk)
        junk = small_disk / "junk"
        os.truncate(junk, junk.stat().st_size - 500_000)
        large = await stack.post(RUN, {**ASKED, "unknown": "z" * 1_000_000})
        assert large.status_code == 503, large.text
        assert (await stack.client.get("/readyz")).status_code == 200
        assert (await stack.post(RUN, ASKED)).status_code == 200


async def test_a_batch_waits_for_the_disk(small_disk: Path) -> None:
    """Its requests were accepted: a disk that is full for a while makes no failures of them."""
    go, refused = asyncio.Event(), asyncio.Event()

    def waits(error: LorikeetError) -> float:
        refused.set()
        return 0.01

    async with open_stack(small_disk, FakeBackend(lambda _: [go, "here"])) as stack:
        stack.services.batches._queue._wait_s = waits
        request_id = await submit(stack, [ASKED])
        await stack.fake.until(lambda: len(stack.fake.requests) == 1)
        fill(small_disk)
        async with asyncio.timeout(20):
            # Not even a record that is smaller than the batch's finds room then.
            while (await stack.post(RUN, {"unknown": ""})).status_code != 503:
                fill(small_disk)
            go.set()
            await refused.wait()
        (small_disk / "junk").unlink()
        assert (await finished(stack, request_id))["responses"][0]["success"]
