"""The outputs of one sequence, as its caller takes them. Not a generator: that would be one more thing to go through at
every output. As there, whatever ends the taking of one, a cancellation too, ends the sequence.
"""

from collections.abc import Awaitable, Callable
from typing import Self

from runtime.protocol import SequenceOutput, Submit
from runtime.stream import Stream


class Outputs:
    """`begin` sends the request when its first output is asked for; `end` is called, once or more, with its id."""

    def __init__(
        self, request: Submit, begin: Callable[[Submit], Awaitable[Stream]], end: Callable[[int], None]
    ) -> None:
        self._request, self._begin, self._end = request, begin, end
        self._stream: Stream | None = None
        self._is_over = False

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> SequenceOutput:
        if self._is_over:
            raise StopAsyncIteration
        try:
            if self._stream is None:
                self._stream = await self._begin(self._request)
            output = await self._stream.get()
        except BaseException:
            await self.aclose()
            raise
        if output.finish_reason is not None:
            await self.aclose()
        return output

    async def aclose(self) -> None:
        """Nothing is taken any more."""
        self._is_over = True
        self._end(self._request.sequence_id)
