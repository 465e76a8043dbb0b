"""A connection's transport that writes once in a turn of the event loop, at its end, side by side with all others.

uvicorn writes the head and the body of an answer apart, and each write is a system call that wakes the peer: the head
alone tells it nothing. And what wakes many answers at once, a step's tokens or a sync of the log, makes each of them
write in that turn. In a row these writes cost half: a peer with several of them, a proxy say, that was woken for the
first still runs when the others come, and being woken is half of what a write costs.
"""

import asyncio
from typing import Any, Final
from weakref import WeakKeyDictionary

_COPIED: Final = 64 * 1024  # joined up to this size: above it a copy costs more than a call, and memory is bounded


class JoinedWrites:
    """Passes everything else through, so uvicorn takes it for the transport. Holds what this turn wrote, little."""

    def __init__(self, transport: asyncio.Transport, loop: asyncio.AbstractEventLoop) -> None:
        self._transport = transport
        self._turn = Turn.of(loop)
        self._held = b""
        self.is_closing = transport.is_closing

    def write(self, data: bytes) -> None:
        """At the end of the turn at the latest; nothing is reordered."""
        if not data:
            return
        if len(self._held) + len(data) > _COPIED:
            self.flush()
            self._transport.write(data)
        elif self._held:
            self._held += data
        else:
            self._held = data
            self._turn.ends_with(self)

    def close(self) -> None:
        """What is held goes first."""
        self.flush()
        self._transport.close()

    def abort(self) -> None:
        """Nothing goes any more."""
        self._held = b""
        self._transport.abort()

    def flush(self) -> None:
        """What is held goes now, unless the connection was lost meanwhile."""
        held, self._held = self._held, b""
        if held and not self.is_closing():
            self._transport.write(held)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)


class Turn:
    """The connections of one event loop that hold something in this turn of it."""

    _all: Final[WeakKeyDictionary[asyncio.AbstractEventLoop, "Turn"]] = WeakKeyDictionary()

    def __init__(self) -> None:
        self._holding: list[JoinedWrites] = []
        self._end_is_due = False

    @classmethod
    def of(cls, loop: asyncio.AbstractEventLoop) -> "Turn":
        """The one of this event loop."""
        return cls._all.setdefault(loop, cls())

    def ends_with(self, connection: JoinedWrites) -> None:
        """It is flushed at the end of this turn, in the order of asking."""
        self._holding.append(connection)
        self.ends_behind_the_woken()

    def ends_behind_the_woken(self) -> None:
        """For who has just woken those who will write: theirs leaves right behind them and not a turn later, which is
        a look at every socket and all that came in meanwhile."""
        if not self._end_is_due:
            self._end_is_due = True
            asyncio.get_running_loop().call_soon(self._end)

    def _end(self) -> None:
        self._end_is_due = False
        holding, self._holding = self._holding, []
        for connection in holding:
            connection.flush()
