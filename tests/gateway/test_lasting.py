"""Who waits for what goes on by itself: he stays to its end, is cancelled then, and is told in the next turn."""

import asyncio
from collections.abc import Awaitable, Callable

import pytest

from gateway.lasting import LastingFuture, to_the_end


async def _as_task(future: "asyncio.Future[None]") -> None:
    await future


@pytest.fixture(params=["future", "task"])
def work(request: pytest.FixtureRequest) -> Callable[["asyncio.Future[None]"], Awaitable[None]]:
    """A lasting future by itself, and anything else that waits for one."""
    return _as_task if request.param == "task" else lambda future: future


Work = Callable[["asyncio.Future[None]"], Awaitable[None]]


async def _cancelled_twice(work: Work, done: LastingFuture) -> "asyncio.Task[None]":
    waiter = asyncio.create_task(to_the_end(work(done)))
    for _ in range(2):
        await asyncio.sleep(0)
        waiter.cancel()
    for _ in range(5):
        await asyncio.sleep(0)
    assert not waiter.done(), "it left before the end"
    return waiter


async def test_a_cancelled_waiter_stays_and_is_cancelled_at_the_end(work: Work) -> None:
    done = LastingFuture()
    waiter = await _cancelled_twice(work, done)
    done.set_result(None)
    with pytest.raises(asyncio.CancelledError):
        await waiter
    assert waiter.cancelled()
    assert not done.cancelled()


async def test_the_cancellation_goes_before_a_failure(work: Work) -> None:
    done = LastingFuture()
    waiter = await _cancelled_twice(work, done)
    done.set_exception(OSError("disk"))
    with pytest.raises(asyncio.CancelledError):
        await waiter


async def test_a_failure_is_raised(work: Work) -> None:
    done = LastingFuture()
    waiter = asyncio.create_task(to_the_end(work(done)))
    done.set_exception(OSError("disk"))
    with pytest.raises(OSError, match="disk"):
        await waiter


async def test_a_deadline_that_strikes_meanwhile_is_a_timeout_at_the_end() -> None:
    done = LastingFuture()
    asyncio.get_running_loop().call_later(0.02, done.set_result, None)
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.0):
            await to_the_end(done)
    assert done.done()


async def test_who_awaits_a_lasting_future_goes_on_in_the_very_next_turn() -> None:
    done = LastingFuture()
    waiter = asyncio.create_task(to_the_end(done))
    await asyncio.sleep(0)
    done.set_result(None)
    await asyncio.sleep(0)
    assert waiter.done()
