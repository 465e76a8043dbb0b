"""Answers of a batch at work, kept as they come: a restart goes on with the requests that have none.

One write is under way at a time, and the next takes all that came meanwhile: nobody waits for it, and a batch of
quick answers costs few objects. What came since the last write is answered again after a crash. While storage is away
answers gather here, and are tried with the next one.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable

import msgspec

from storage.errors import StorageError

logger = logging.getLogger(__name__)


class Answered(msgspec.Struct):
    """One request's answer, and its tokens: of the prompt, of the answer, and those that were cached."""

    index: int
    answer: msgspec.Raw
    tokens: tuple[int, int, int] = (0, 0, 0)


class Answers:
    """`given` are those of earlier starts. `write(number, answers)` keeps one part; numbers count from 0."""

    def __init__(self, given: list[list[Answered]], write: Callable[[int, list[Answered]], Awaitable[None]]) -> None:
        self._by_index = {one.index: one for part in given for one in part}
        self._num_parts = len(given)
        self._write = write
        self._unwritten: list[Answered] = []
        self._changed = asyncio.Event()
        self._closed = False

    def __contains__(self, index: int) -> bool:
        return index in self._by_index

    def add(self, one: Answered) -> None:
        """In the order of their completion."""
        self._by_index[one.index] = one
        self._unwritten.append(one)
        self._changed.set()

    def close(self) -> None:
        """All are there: whoever writes them ends, after the write at hand."""
        self._closed = True
        self._changed.set()

    async def keep(self) -> None:
        """Writes parts until `close`."""
        while True:
            await self._changed.wait()
            self._changed.clear()
            if self._closed:
                return
            part, self._unwritten = self._unwritten, []
            try:
                await self._write(self._num_parts, part)
            except StorageError as error:
                logger.warning("answers of a batch are not kept yet: %s", error)
                self._unwritten = part + self._unwritten
            else:
                self._num_parts += 1

    @property
    def all(self) -> list[Answered]:
        """In the order of their completion."""
        return list(self._by_index.values())
