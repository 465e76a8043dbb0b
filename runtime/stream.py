"""The outputs of one sequence on their way from the connection's reader to the task that asked for them.

Holds what was not taken yet, and the reader gets it as one output: the bound is the answer's own length, a few outputs
at a time are merged on the way, and none is ever dropped. Ends with the output that carries a finish reason, or with an
error.

A reader costs about the same for one token as for ten: it is woken, makes text and an event of them, and writes to a
socket. `Beat` therefore wakes each reader only so often, seldomer the more there are, and all that wait at once.
"""

import asyncio
from collections.abc import Callable
from typing import Final

import msgspec

from runtime.protocol import SequenceOutput

# All readers together are woken about every so often, which is a seventh of a core; one alone gets each token by
# itself, and so do 32 at the 7 ms, or 64 at the 12 ms, that a large card takes for a step of a 7 B model.
WAKE_S: Final = 0.0002
MOST_UNMERGED: Final = 16  # an output of one token is twenty times as large as the token


class Beat:
    """When the readers of one client's streams are woken: the first output and the last at once, those between at most
    every `max_gap_s`, or every `WAKE_S` times the number of streams where that is less. Never later than that either.

    `clock` and `call_later` are the event loop's.
    """

    def __init__(
        self, max_gap_s: float, clock: Callable[[], float], call_later: Callable[[float, Callable[[], None]], object]
    ) -> None:
        self._max_gap_s = max_gap_s
        self._clock = clock
        self._call_later = call_later
        self._held: list[Stream] = []
        self.num_streams = 0

    def arrived(self, stream: "Stream") -> None:
        """Wakes the reader, now or at the next beat."""
        now = self._clock()
        if now >= stream.quiet_until:
            stream.quiet_until = now + self._gap_s()
            stream.wake()
            return
        if not self._held:
            self._call_later(self._gap_s(), self._strike)
        self._held.append(stream)

    def _strike(self) -> None:
        quiet_until = self._clock() + self._gap_s()
        held, self._held = self._held, []
        for stream in held:
            stream.quiet_until = quiet_until
            stream.wake()

    def _gap_s(self) -> float:
        return min(self._max_gap_s, WAKE_S * self.num_streams)


class Stream:
    """One producer, one consumer, one event loop. Without a `beat` the reader is woken for every output."""

    def __init__(self, beat: Beat | None = None) -> None:
        self._beat = beat
        self._pending: list[SequenceOutput] = []
        self._error: Exception | None = None
        self._reader: asyncio.Future[None] | None = None
        self.quiet_until = 0.0  # the beat's
        self.ended = False

    def put(self, output: SequenceOutput) -> None:
        """Adds an output; ignored after the end."""
        if self.ended:
            return
        self._pending.append(output)
        self.ended = output.finish_reason is not None
        is_first = len(self._pending) == 1
        if len(self._pending) == MOST_UNMERGED:
            self._pending = [_merged(self._pending)]
        if self.ended or self._beat is None:
            self.wake()
        elif is_first:  # else the reader knows, or will be told at the next beat
            self._beat.arrived(self)

    def fail(self, error: Exception) -> None:
        """Ends the stream; outputs that already arrived are still taken first."""
        if not self.ended:
            self._error = error
            self.ended = True
            self.wake()

    def wake(self) -> None:
        """Lets the reader look again."""
        if self._reader is not None and not self._reader.done():
            self._reader.set_result(None)

    async def get(self) -> SequenceOutput:
        """The next output. Raises the error given to `fail`."""
        while not self._pending:
            if self._error is not None:
                raise self._error
            self._reader = asyncio.get_running_loop().create_future()
            await self._reader
        outputs, self._pending = self._pending, []
        return outputs[0] if len(outputs) == 1 else _merged(outputs)


def _merged(outputs: list[SequenceOutput]) -> SequenceOutput:
    """The last of them, with the tokens and scores of all."""
    last = outputs[-1]
    token_ids = tuple([token_id for output in outputs for token_id in output.token_ids])
    scores = tuple([score for output in outputs for score in output.scores])
    if last.finish_reason is None:
        return SequenceOutput(last.sequence_id, token_ids, scores=scores)
    return msgspec.structs.replace(last, token_ids=token_ids, scores=scores)
