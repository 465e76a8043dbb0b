"""The choices of an answer that is not streamed, put together from their chunks."""

from gateway.messages import Chunk, FinishReason, TokenLogprob, ToolCallDelta


class Choices:
    """Gathers until the end. Bounded by max_tokens of each choice, whose number the wire bounds."""

    def __init__(self) -> None:
        self._texts: dict[int, list[str]] = {}
        self._calls: dict[int, dict[int, list[ToolCallDelta]]] = {}
        self._logprobs: dict[int, list[TokenLogprob]] = {}
        self._reasons: dict[int, FinishReason] = {}
        self._stop_strings: dict[int, str | None] = {}
        self.num_scores = 0

    def add(self, chunk: Chunk) -> None:
        """Chunks of one choice come in order."""
        self._texts.setdefault(chunk.index, []).append(chunk.text)
        for piece in chunk.tool_calls:
            self._calls.setdefault(chunk.index, {}).setdefault(piece.index, []).append(piece)
        if chunk.logprobs is not None:
            self._logprobs.setdefault(chunk.index, []).extend(chunk.logprobs)
            self.num_scores += sum(1 + len(token.top) for token in chunk.logprobs)
        if chunk.finish_reason is not None:
            self._reasons[chunk.index] = chunk.finish_reason
            self._stop_strings[chunk.index] = chunk.stop_string

    def whole(self) -> list[Chunk]:
        """Each choice as one chunk, in order of index, with each of its calls as one piece."""
        return [
            Chunk(
                "".join(texts),
                self._reasons.get(index),
                index=index,
                logprobs=tuple(self._logprobs[index]) if index in self._logprobs else None,
                tool_calls=tuple(_call(pieces) for _, pieces in sorted(self._calls.get(index, {}).items())),
                stop_string=self._stop_strings.get(index),
            )
            for index, texts in sorted(self._texts.items())
        ]


def _call(pieces: list[ToolCallDelta]) -> ToolCallDelta:
    first = pieces[0]
    return ToolCallDelta(first.index, first.id, first.name, "".join(piece.arguments for piece in pieces))
