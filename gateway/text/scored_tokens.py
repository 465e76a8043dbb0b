"""Log-probabilities on their way to the caller, in step with the text that they belong to.

Text is held back while it may become half a character or a stop string; a token's scores wait until some of its bytes
were shown. So a stream's chunk has the scores of its own text, and a token that lies wholly in a stop string has none.
"""

from collections import deque
from collections.abc import Iterable

from gateway.messages import ScoredText, TokenLogprob
from gateway.text.token_texts import TokenTexts
from runtime.protocol import TokenScore


class ScoredTokens:
    """Of one answer. What waits is bounded by the text that is held back."""

    def __init__(self, texts: TokenTexts) -> None:
        self._texts = texts
        self._waiting: deque[tuple[int, TokenLogprob]] = deque()  # with the place of its first byte in the answer
        self._num_bytes = 0
        self._num_shown = 0

    def push(self, token_ids: Iterable[int], scores: Iterable[TokenScore]) -> None:
        """Tokens of the answer, in order."""
        for token_id, score in zip(token_ids, scores, strict=True):
            text, data = self._texts.of(token_id)
            top = tuple(ScoredText(*self._texts.of(other), logprob) for other, logprob in score.top)
            self._waiting.append((self._num_bytes, TokenLogprob(text, data, score.logprob, top)))
            self._num_bytes += len(data)

    def shown(self, text: str) -> tuple[TokenLogprob, ...]:
        """The tokens that begin before the end of what is shown now, with this text."""
        self._num_shown += len(text.encode())
        ready = []
        while self._waiting and self._waiting[0][0] < self._num_shown:
            ready.append(self._waiting.popleft()[1])
        return tuple(ready)

    def rest(self) -> tuple[TokenLogprob, ...]:
        """Every token that is left, at the end of an answer that no stop string cut."""
        ready = tuple(token for _, token in self._waiting)
        self._waiting.clear()
        return ready
