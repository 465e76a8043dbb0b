"""A call in a thread that ends with it, for work that computes with torch before the engine's thread does.

OpenMP gives every thread that computes a team of helpers, and keeps them as long as that thread lives. Once there are
more of them than processors, they no longer wait for work by spinning but go to sleep after every product, also those
of the engine: on two cores a decode step of half a billion weights took 27-31 ms with the loader's thread still there,
22 ms without. Threads of a pool, as `asyncio.to_thread` has them, never end.
"""

import asyncio
import contextlib
import threading
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")


async def in_own_thread(call: Callable[[], T], name: str) -> T:
    """What the call returns or raises. When the caller is cancelled the thread goes on, with nobody to tell."""
    loop = asyncio.get_running_loop()
    done: asyncio.Future[T] = loop.create_future()
    thread: threading.Thread

    def settle(result: T | None, error: BaseException | None) -> None:
        thread.join()  # it has nothing left to do, and its helpers must be gone when the caller goes on
        if done.done():
            return
        if error is not None:
            done.set_exception(error)
        else:
            done.set_result(result)  # type: ignore[arg-type]  # T may be None itself

    def run() -> None:
        result, error = None, None
        try:
            result = call()
        except BaseException as fault:
            error = fault
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits any more
            loop.call_soon_threadsafe(settle, result, error)

    thread = threading.Thread(target=run, name=name, daemon=True)
    thread.start()
    return await done
