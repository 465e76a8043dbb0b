"""Which signals end the work."""

import asyncio
import os
import signal
from collections.abc import Iterator

import pytest

from gateway.interruption import Interrupted, until_signalled


@pytest.fixture(autouse=True)
def dispositions_come_back() -> Iterator[None]:
    before = signal.getsignal(signal.SIGHUP)
    yield
    signal.signal(signal.SIGHUP, before)


async def hung_up_and_stopped() -> None:
    os.kill(os.getpid(), signal.SIGHUP)
    os.kill(os.getpid(), signal.SIGTERM)
    await asyncio.Event().wait()


def test_a_hangup_ends_the_work() -> None:
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
    with pytest.raises(Interrupted, match="SIGHUP"):
        asyncio.run(until_signalled(hung_up_and_stopped()))


def test_a_hangup_that_is_ignored_from_the_start_stays_so() -> None:
    """`nohup lorikeet serve &` outlives its terminal."""
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    with pytest.raises(Interrupted, match="SIGTERM"):
        asyncio.run(until_signalled(hung_up_and_stopped()))
    assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
