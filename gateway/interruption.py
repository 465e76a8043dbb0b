"""Running until a signal, such that whatever was opened is closed: SIGINT, SIGTERM and SIGHUP cancel the work.

A SIGHUP that is ignored from the start stays so: `nohup` means that the work outlives its terminal.
"""

import asyncio
import contextlib
import os
import signal
import threading
from collections.abc import Coroutine
from typing import Any, Final

SIGNALS: Final = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Interrupted(Exception):
    """A signal ended the work; its contexts are closed. `number` is the signal."""

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.number = number


async def until_signalled(work: Coroutine[Any, Any, Any]) -> Any:
    """The result of `work`. The first signal cancels it, later ones its clean-up too; then raises Interrupted."""
    loop, task, received = asyncio.get_running_loop(), asyncio.ensure_future(work), list[int]()

    def interrupt(number: int) -> None:
        received.append(number)
        task.cancel()

    heard = [number for number in SIGNALS if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN]
    for number in heard:
        loop.add_signal_handler(number, interrupt, number)
    try:
        return await task
    except asyncio.CancelledError:
        if received:
            raise Interrupted(received[0]) from None
        raise
    finally:
        for number in heard:
            loop.remove_signal_handler(number)


async def until_stdin_ends() -> None:
    """Returns when standard input does: its other end is held by a process that must not be outlived."""
    loop, ended = asyncio.get_running_loop(), asyncio.Event()

    def wait() -> None:
        while os.read(0, 4096):
            pass
        with contextlib.suppress(RuntimeError):  # the loop is closed already: the process is leaving anyway
            loop.call_soon_threadsafe(ended.set)

    threading.Thread(target=wait, name="lifeline", daemon=True).start()
    await ended.wait()
