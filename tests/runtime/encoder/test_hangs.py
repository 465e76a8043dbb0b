"""Encoders that hang: frozen before or after a greeting, or at one batch for ever; whoever waits is told in time."""

import asyncio
import signal
import threading
from collections.abc import Sequence
from pathlib import Path

import pytest

import runtime.encoder.batching as batching
from runtime.encoder.batching import Batching, Text
from runtime.encoder.client import EncoderClient
from runtime.errors import RuntimeLost
from tests.runtime.encoder.child import TOKEN, encoder_child
from tests.runtime.encoder.folders import write_encoder

pytestmark = pytest.mark.timeout(120)
IDS = ((2, 5, 3),)
AT_ONE_BATCH_FOR_EVER = """
import threading
import runtime.encoder.batching as batching
from runtime.encoder.bert import BertEncoder
from runtime.encoder.process import main
batching.HUNG_S = 0.05
BertEncoder.embed = lambda *given: threading.Event().wait()
main()
"""


class Told:
    """Which processes were said to hang."""

    def __init__(self) -> None:
        self.pids: list[int] = []
        self.changed = asyncio.Event()

    def __call__(self, pid: int) -> None:
        self.pids.append(pid)
        self.changed.set()


async def test_a_frozen_encoder_is_noticed_and_told(tmp_path: Path) -> None:
    write_encoder(tmp_path, "bert")
    told = Told()
    async with (
        encoder_child(tmp_path) as (process, path),
        EncoderClient(path, TOKEN, ping_interval_s=0.05, connect_timeout_s=0.5, on_hung=told) as client,
    ):
        first = await client.encode(IDS)
        process.send_signal(signal.SIGSTOP)
        with pytest.raises(RuntimeLost):
            await asyncio.wait_for(client.encode(IDS), 60)
        assert told.pids == [process.pid]
        assert client.problem is not None
        told.changed.clear()
        await asyncio.wait_for(told.changed.wait(), 60)  # it takes connections, and does not greet
        assert set(told.pids) == {process.pid}
        process.send_signal(signal.SIGCONT)
        assert await client.encode(IDS, wait_s=60) == first


async def test_one_that_answers_is_left_alone(tmp_path: Path) -> None:
    write_encoder(tmp_path, "bert")
    told = Told()
    async with (
        encoder_child(tmp_path) as (_, path),
        EncoderClient(path, TOKEN, ping_interval_s=0.1, on_hung=told) as client,
        asyncio.timeout(60),
    ):
        first = await client.encode(IDS)
        for _ in range(3):
            while not client._unanswered:
                await asyncio.sleep(0.001)
            while client._unanswered:
                await asyncio.sleep(0.001)
        assert await client.encode(IDS) == first
    assert told.pids == []


async def test_a_model_that_never_comes_back_from_a_batch_is_noticed(tmp_path: Path) -> None:
    write_encoder(tmp_path, "bert")
    told = Told()
    async with (
        encoder_child(tmp_path, code=AT_ONE_BATCH_FOR_EVER) as (process, path),
        EncoderClient(path, TOKEN, ping_interval_s=0.05, on_hung=told) as client,
    ):
        with pytest.raises(RuntimeLost):
            await asyncio.wait_for(client.encode(IDS, wait_s=60), 60)
        assert told.pids == [process.pid]


async def test_only_a_batch_at_work_can_hang(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batching, "HUNG_S", 0.0)
    loop, begun, go_on = asyncio.get_running_loop(), asyncio.Event(), threading.Event()

    def model(texts: Sequence[Text]) -> list[bytes]:
        loop.call_soon_threadsafe(begun.set)
        assert go_on.wait(30)
        return [b"x"] * len(texts)

    one = Batching(model, 64, 10, loop)
    one.start()
    assert not one.hangs
    text = Text((1, 2), (), "mean", loop.create_future())
    assert one.submit([text])
    await begun.wait()
    assert one.hangs
    go_on.set()
    assert await text.answer == b"x"
    assert not one.hangs
    one.stop(5)
