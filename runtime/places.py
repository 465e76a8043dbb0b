"""A gateway's questions in which tier adapters are, until the runtime has answered them. Belongs to one event loop."""

import asyncio
import contextlib
from collections.abc import Callable, Mapping, Sequence

from runtime.protocol import AdapterStatus, ClientFrame, Places, Where


class PlacesAsked:
    """One connection's open questions, by number."""

    def __init__(self) -> None:
        self._open: dict[int, asyncio.Future[Places | None]] = {}

    async def ask(self, tell: Callable[[ClientFrame], None], question: Where, timeout_s: float) -> Places | None:
        """The answer; None when none comes in time, or the runtime goes away."""
        answer: asyncio.Future[Places | None] = asyncio.get_running_loop().create_future()
        self._open[question.number] = answer
        try:
            tell(question)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(timeout_s):
                    return await answer
            return None
        finally:
            del self._open[question.number]

    def answered(self, frame: Places) -> None:
        """Nobody may wait for it any more."""
        answer = self._open.get(frame.number)
        if answer is not None and not answer.done():
            answer.set_result(frame)

    def lost(self) -> None:
        """There is nobody to answer."""
        for answer in self._open.values():
            if not answer.done():
                answer.set_result(None)


def placed(
    digests: Sequence[str], places: Places | None, news: Mapping[str, AdapterStatus]
) -> dict[str, AdapterStatus]:
    """The latest news of each adapter, with the place where it is now, if that is known."""
    found = {digest: status for digest in digests if (status := news.get(digest)) is not None}
    for digest, tier in zip(digests, places.tiers if places else (), strict=False):
        if tier is not None or digest in found:
            last = found.get(digest, AdapterStatus(digest, None))
            found[digest] = AdapterStatus(digest, tier, last.visits, last.failure)
    return found
