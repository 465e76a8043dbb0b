"""`asyncio.timeout` for one fixed time, as a plain block: every request has one, and asyncio's is two awaits and
a look for the event loop at each of its ends.
"""

import asyncio
from types import TracebackType


class Deadline:
    """Cancels the task that entered it when the time is over, and raises TimeoutError in place of that. Used once."""

    def __init__(self, timeout_s: float) -> None:
        self._timeout_s = timeout_s
        self._is_over = False

    def __enter__(self) -> None:
        task = asyncio.current_task()
        assert task is not None, "only a task can be cancelled"
        self._task, self._cancelling = task, task.cancelling()
        self._timer = asyncio.get_running_loop().call_later(self._timeout_s, self._strike)

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._timer.cancel()
        if self._is_over and self._task.uncancel() <= self._cancelling and kind is asyncio.CancelledError:
            raise TimeoutError from value

    def _strike(self) -> None:
        self._is_over = True
        self._task.cancel()
