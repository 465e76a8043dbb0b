import asyncio
import threading

import pytest

from runtime.own_thread import in_own_thread


async def test_the_thread_is_gone_when_the_result_is_there() -> None:
    threads: list[threading.Thread] = []

    def call() -> int:
        threads.append(threading.current_thread())
        return 7

    assert await in_own_thread(call, "loading") == 7
    assert threads[0].name == "loading"
    assert threads[0] is not threading.main_thread()
    assert not threads[0].is_alive()


async def test_an_error_is_raised_where_it_is_waited_for() -> None:
    def call() -> None:
        raise ValueError("no such folder")

    with pytest.raises(ValueError, match="no such folder"):
        await in_own_thread(call, "loading")


async def test_a_cancelled_caller_does_not_wait() -> None:
    begun, go_on, ended = threading.Event(), threading.Event(), threading.Event()

    def call() -> None:
        begun.set()
        go_on.wait(10)
        ended.set()

    task = asyncio.ensure_future(in_own_thread(call, "loading"))
    await asyncio.to_thread(begun.wait, 10)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    go_on.set()
    assert await asyncio.to_thread(ended.wait, 10)
