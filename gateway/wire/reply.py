"""What a dialect must be able to say back: one object per request, made before anything can go wrong with it."""

from typing import Protocol

from gateway.errors import LorikeetError
from gateway.messages import FinishReason, Usage


class Reply(Protocol):
    """Bytes only; status and headers are the same in every dialect and belong to `answer.py`."""

    def whole(self, text: str, finish_reason: FinishReason, usage: Usage) -> bytes:
        """The body of an answer that was not streamed."""
        ...

    def piece(self, text: str) -> bytes:
        """The event of a piece of text."""
        ...

    def ending(self, finish_reason: FinishReason, usage: Usage) -> bytes:
        """The events after the last piece, without `[DONE]`."""
        ...

    def failure(self, error: LorikeetError) -> bytes:
        """The body of an error that came before anything was sent."""
        ...

    def failure_event(self, error: LorikeetError) -> bytes:
        """The event of an error after text was sent; nothing follows it, no `[DONE]` either."""
        ...
