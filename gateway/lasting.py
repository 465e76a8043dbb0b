"""Waiting for what goes on by itself: to its end, however often the waiter is cancelled, and only then cancelled.

`asyncio.shield` in a loop does that for anything, at two more futures and one more turn of the event loop each time.
A `LastingFuture` refuses to be cancelled, and a task whose future refuses keeps the cancellation for when it is done.
"""

import asyncio
from collections.abc import Awaitable


class LastingFuture(asyncio.Future[None]):
    """Who awaits it stays until it is done."""

    def cancel(self, msg: object | None = None) -> bool:
        """Never."""
        return False


async def to_the_end(work: Awaitable[None]) -> None:
    """Awaits `work`, which goes on by itself. Raises what it raises, or the waiter's cancellation instead."""
    if isinstance(work, LastingFuture):
        await work
        return
    task = asyncio.ensure_future(work)
    cancelled: asyncio.CancelledError | None = None
    while not task.done():
        try:
            await asyncio.shield(task)
        except asyncio.CancelledError as error:
            if task.done():
                break
            cancelled = error
        except Exception:  # read below, from the task itself
            break
    if cancelled is not None:
        if not task.cancelled():
            task.exception()  # taken, so that nobody is warned; the cancellation goes first
        raise cancelled
    task.result()
