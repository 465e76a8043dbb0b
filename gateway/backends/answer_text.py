"""Outputs of the runtime, which are tokens, to chunks of text and of calls.

    tokens > Detokenizer > (the base's parser of calls, when the request has tools) > StopStrings > Chunk

A stop string ends the text, wherever it stands in it; inside a call it is an argument's own business.
"""

from collections.abc import Iterable

from gateway.backends.failures import RETRY_AFTER_S
from gateway.errors import RuntimeUnavailable
from gateway.messages import ChatRequest, Chunk, FinishReason, TokenLogprob, ToolCallDelta, Usage
from gateway.text.detokenizer import Detokenizer, StopStrings
from gateway.text.scored_tokens import ScoredTokens
from gateway.text.tokenizer import Tokenizer
from gateway.text.tool_calls.base import Parsed
from runtime.protocol import SequenceOutput, SequenceTiming


class AnswerText:
    """Of one sequence; ends by a finish reason, by a stop string, or by the one call that it may have."""

    def __init__(self, tokenizer: Tokenizer, asked: ChatRequest, num_prompt: int, scored: ScoredTokens | None) -> None:
        self._calls = tokenizer.call_parser(asked)
        self._text = Detokenizer(tokenizer.encoder, tokenizer.call_marks(asked), tokenizer.spelled)
        self._at_most_one = not asked.tool_choice.parallel
        self._stops = StopStrings(asked.sampling.stop)
        self._scored = scored
        self._num_prompt = num_prompt
        self._num_tokens = 0
        self._spent = ""  # of the model's text, since the last chunk: what became calls

    def take(self, output: SequenceOutput) -> Chunk | None:
        """None when nothing can be shown yet."""
        self._num_tokens += len(output.token_ids)
        if self._scored is not None:
            self._scored.push(output.token_ids, output.scores)
        text, calls = self._read(output.token_ids)
        if self._is_over:
            if output.finish_reason is None:
                return self._last(text, calls, "stop", Usage(self._num_prompt, self._num_tokens), None)
            return self._last(text, calls, "stop", _usage(output), output.timing)
        if output.finish_reason == "stop" or output.finish_reason == "length":
            if self._calls is not None:
                rest = self._calls.flush()
                text, calls = text + self._shown(rest), _joined(calls, rest.calls)
            text += self._stops.flush()
            reason: FinishReason = "stop" if self._stops.matched else output.finish_reason
            return self._last(text, calls, reason, _usage(output), output.timing)
        if output.finish_reason is not None:
            raise RuntimeUnavailable(
                "the model's runtime stopped in the middle; try again", retry_after_s=RETRY_AFTER_S
            )
        return Chunk(text, logprobs=self._logprobs(text), tool_calls=calls) if text or calls else None

    @property
    def _is_over(self) -> bool:
        one = self._at_most_one and self._calls is not None and self._calls.num_whole > 0
        return self._stops.matched or one

    def _read(self, token_ids: Iterable[int]) -> tuple[str, tuple[ToolCallDelta, ...]]:
        """Token by token where there may be calls: how many came at once must not matter to what ends the answer."""
        if self._calls is None:
            return self._stops.push(self._text.push(token_ids)), ()
        text, calls = "", tuple[ToolCallDelta, ...]()
        for token_id in token_ids:
            parsed = self._calls.push(self._text.push((token_id,)))
            text += self._shown(parsed)
            calls = _joined(calls, parsed.calls)
            if self._is_over:
                break
        return text, calls

    def _shown(self, parsed: Parsed) -> str:
        self._spent += parsed.spent
        return self._stops.push(parsed.text)

    def _logprobs(self, text: str) -> tuple[TokenLogprob, ...] | None:
        """The scores of what is shown now and of what became calls since the last time."""
        if self._scored is None:
            return None
        spent, self._spent = self._spent, ""
        return self._scored.shown(spent) + self._scored.shown(text)

    def _last(
        self,
        text: str,
        calls: tuple[ToolCallDelta, ...],
        reason: FinishReason,
        usage: Usage,
        timing: SequenceTiming | None,
    ) -> Chunk:
        logprobs = self._logprobs(text)
        if self._scored is not None and logprobs is not None and not self._is_over:
            logprobs += self._scored.rest()
        if self._calls is not None and self._calls.num_whole and not self._calls.is_half_told:
            reason = "tool_calls"
        met = self._stops.met if reason == "stop" else None
        return Chunk(text, reason, usage, timing, logprobs=logprobs, tool_calls=calls, stop_string=met)


def _joined(told: tuple[ToolCallDelta, ...], more: tuple[ToolCallDelta, ...]) -> tuple[ToolCallDelta, ...]:
    """A chunk has one piece of each call: many clients lose others of the same index in one event."""
    pieces = list(told)
    for piece in more:
        if pieces and pieces[-1].index == piece.index:
            last = pieces.pop()
            piece = ToolCallDelta(last.index, last.id, last.name, last.arguments + piece.arguments)
        pieces.append(piece)
    return tuple(pieces)


def _usage(output: SequenceOutput) -> Usage:
    return Usage(output.prompt_tokens, output.completion_tokens, output.cached_tokens)
