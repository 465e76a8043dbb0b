"""When the caller of a request leaves before its answer is complete, told by the server to whoever wants to know.

ASGI tells it to those who wait for a message, which takes a task for each answer; the server's protocol knows at once
and calls. Where the server is another one, there is no departure in the scope, and waiting is the only way.
"""

from collections.abc import Callable
from typing import Final

SCOPE_KEY: Final = "lorikeet.departure"


class Departure:
    """Of one request. One watcher at a time; `left` stays."""

    def __init__(self) -> None:
        self._watcher: Callable[[], None] | None = None
        self.left = False

    def watch(self, call: Callable[[], None]) -> None:
        """`call` is called once, in the event loop, if the caller leaves from now on."""
        self._watcher = call

    def unwatch(self) -> None:
        """Nobody is called any more."""
        self._watcher = None

    def leave(self) -> None:
        """The caller is gone."""
        self.left = True
        call, self._watcher = self._watcher, None
        if call is not None:
            call()
