"""The outputs of one sequence on their way from the connection's reader to the task that asked for them.

Holds at most one output: what was not taken yet is merged with what comes, so the bound is the answer's own length and
no output is ever dropped. Ends with the output that carries a finish reason, or with an error.
"""

import asyncio

import msgspec

from runtime.protocol import SequenceOutput


class Stream:
    """One producer, one consumer, one event loop."""

    def __init__(self) -> None:
        self._pending: SequenceOutput | None = None
        self._error: Exception | None = None
        self._arrived = asyncio.Event()
        self.ended = False

    def put(self, output: SequenceOutput) -> None:
        """Adds an output; ignored after the end."""
        if self.ended:
            return
        if self._pending is not None:
            output = msgspec.structs.replace(
                output,
                token_ids=self._pending.token_ids + output.token_ids,
                scores=self._pending.scores + output.scores,
            )
        self._pending = output
        self.ended = output.finish_reason is not None
        self._arrived.set()

    def fail(self, error: Exception) -> None:
        """Ends the stream; outputs that already arrived are still taken first."""
        if not self.ended:
            self._error = error
            self.ended = True
            self._arrived.set()

    async def get(self) -> SequenceOutput:
        """The next output. Raises the error given to `fail`."""
        await self._arrived.wait()
        output, self._pending = self._pending, None
        if output is None:
            assert self._error is not None
            raise self._error
        if self._error is None:
            self._arrived.clear()
        return output
