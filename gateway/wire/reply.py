"""What a dialect must be able to say back: one object per request, made before anything can go wrong with it."""

from collections.abc import Sequence
from typing import Protocol

from gateway.errors import LorikeetError
from gateway.messages import Chunk, Usage


class Reply(Protocol):
    """Bytes only; status and headers are the same in every dialect and belong to `answer.py`."""

    def whole(self, choices: Sequence[Chunk], usage: Usage) -> bytes:
        """The body of an answer that was not streamed; a choice is all its chunks as one, in order of `index`.

        Raises a LorikeetError for an answer that cannot be told in this shape.
        """
        ...

    def piece(self, chunk: Chunk) -> bytes:
        """The events of text, of calls, and of the end of a choice while others go on; empty for none of these."""
        ...

    def ending(self, last: Chunk, usage: Usage) -> bytes:
        """The events after the last piece, to the very end; the text and the calls of `last` were said before."""
        ...

    def failure(self, error: LorikeetError) -> bytes:
        """The body of an error that came before anything was sent."""
        ...

    def failure_event(self, error: LorikeetError) -> bytes:
        """The event of an error after text was sent; nothing follows it, no end either."""
        ...
