"""Outputs of the runtime, which are tokens, to chunks of text."""

from gateway.backends.failures import RETRY_AFTER_S
from gateway.errors import RuntimeUnavailable
from gateway.messages import Chunk, FinishReason, Usage
from gateway.text.detokenizer import Detokenizer, StopStrings
from gateway.text.scored_tokens import ScoredTokens
from gateway.text.tokenizer import Tokenizer
from runtime.protocol import SequenceOutput, SequenceTiming


class AnswerText:
    """Of one sequence; ends by a finish reason or by a stop string."""

    def __init__(
        self, tokenizer: Tokenizer, stops: tuple[str, ...], num_prompt: int, scored: ScoredTokens | None
    ) -> None:
        self._text = Detokenizer(tokenizer.encoder)
        self._stops = StopStrings(stops)
        self._scored = scored
        self._num_prompt = num_prompt
        self._num_tokens = 0

    def take(self, output: SequenceOutput) -> Chunk | None:
        """None when nothing can be shown yet."""
        self._num_tokens += len(output.token_ids)
        if self._scored is not None:
            self._scored.push(output.token_ids, output.scores)
        text = self._stops.push(self._text.push(output.token_ids))
        if self._stops.matched:
            if output.finish_reason is None:
                return self._last(text, "stop", Usage(self._num_prompt, self._num_tokens), None)
            return self._last(text, "stop", _usage(output), output.timing)
        if output.finish_reason == "stop" or output.finish_reason == "length":
            return self._last(text + self._stops.flush(), output.finish_reason, _usage(output), output.timing)
        if output.finish_reason is not None:
            raise RuntimeUnavailable(
                "the model's runtime stopped in the middle; try again", retry_after_s=RETRY_AFTER_S
            )
        return Chunk(text, logprobs=None if self._scored is None else self._scored.shown(text)) if text else None

    def _last(self, text: str, reason: FinishReason, usage: Usage, timing: SequenceTiming | None) -> Chunk:
        logprobs = None
        if self._scored is not None:
            logprobs = self._scored.shown(text) + (() if self._stops.matched else self._scored.rest())
        return Chunk(text, reason, usage, timing, logprobs=logprobs)


def _usage(output: SequenceOutput) -> Usage:
    return Usage(output.prompt_tokens, output.completion_tokens, output.cached_tokens)
