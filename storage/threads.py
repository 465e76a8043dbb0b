"""Blocking work off the event loop, never left running behind a caller that has gone.

A thread cannot be stopped. So a cancelled caller waits for the one short piece of work that is under way and only then
lets the cancellation through; whoever cleans up afterwards (closes the file, removes it) has it to itself.
"""

import asyncio
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import ParamSpec, TypeVar

T = TypeVar("T")
P = ParamSpec("P")


async def finish(work: Awaitable[T]) -> T:
    """Awaits `work` to its end even when the caller is cancelled meanwhile; the cancellation is raised after that.

    For work that must not stop half-way and ends soon. Its own failure gives way to the cancellation.
    """
    future = asyncio.ensure_future(work)
    cancelled: asyncio.CancelledError | None = None
    while not future.done():
        try:
            await asyncio.wait((future,))
        except asyncio.CancelledError as error:
            cancelled = error
    if cancelled is not None:
        if not future.cancelled():
            future.exception()  # marks it as seen
        raise cancelled
    return future.result()


class Threads:
    """At most `count` threads, started as needed. Callers bound what waits: each awaits its own piece of work."""

    def __init__(self, count: int, name: str) -> None:
        self._pool = ThreadPoolExecutor(count, thread_name_prefix=name)

    async def run(self, work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """The result of `work` in a thread. Raises what it raises; a cancellation is raised after it has ended."""
        loop = asyncio.get_running_loop()
        return await finish(loop.run_in_executor(self._pool, partial(work, *args, **kwargs)))

    async def aclose(self) -> None:
        """Waits for running work and ends the threads."""
        await finish(asyncio.to_thread(self._pool.shutdown))
