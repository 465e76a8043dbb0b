"""Anthropic's Messages dialect, the way out: a `message`, or its story told in named events.

    message_start, content_block_start, content_block_delta*, content_block_stop, ..., message_delta, message_stop

How long the prompt was is known at the end only, so `message_start` says 0 input tokens and `message_delta` the number;
Anthropic's clients take the later one.
"""

from collections.abc import Sequence
from typing import Any, Final

import msgspec

from gateway.errors import LorikeetError
from gateway.messages import ChatRequest, Chunk, FinishReason, ToolCallDelta, Usage
from gateway.wire import sse
from gateway.wire.envelope import error_body

_encode = msgspec.json.Encoder().encode
# Its own names of what went wrong: clients branch on them.
_ERROR_TYPES: Final = {
    401: "authentication_error", 403: "permission_error", 404: "not_found_error", 408: "timeout_error",
    413: "request_too_large", 429: "rate_limit_error", 503: "overloaded_error",
}  # fmt: skip
_REASONS: Final[dict[FinishReason | None, str]] = {
    "stop": "end_turn", "length": "max_tokens", "tool_calls": "tool_use", None: "end_turn",
}  # fmt: skip

_UNENDED: Final[dict[str, str | None]] = {"stop_reason": None, "stop_sequence": None}


class AnthropicReply:
    """`gateway.wire.reply.Reply` in this shape. `describe` is called once the request is known."""

    def __init__(self, log_id: str) -> None:
        self._id = f"msg_{log_id}"
        self._model = ""
        self._begun = False
        self._index = -1
        self._call: int | None = None  # the call that the open block is about; None: text
        self._is_open = False

    def describe(self, request: ChatRequest) -> None:
        """The caller's own words for the model come back."""
        self._model = request.model

    def whole(self, choices: Sequence[Chunk], usage: Usage) -> bytes:
        """A `message`."""
        (choice,) = choices  # `n` is no field of this dialect
        content: list[dict[str, Any]] = []
        if choice.text or not choice.tool_calls:
            content.append({"type": "text", "text": choice.text})
        content += [{**_call(call), "input": msgspec.Raw(call.arguments.encode())} for call in choice.tool_calls]
        return _encode(self._message(content, _why(choice), _usage(usage)))

    def piece(self, chunk: Chunk) -> bytes:
        """Events of text and calls, with those that open and close the block that they belong to."""
        said = self._begin()
        if chunk.text:
            if not self._is_open or self._call is not None:
                said += self._close() + self._open({"type": "text", "text": ""}, None)
            said += self._delta({"type": "text_delta", "text": chunk.text})
        for call in chunk.tool_calls:
            if not self._is_open or self._call != call.index:
                said += self._close() + self._open({**_call(call), "input": {}}, call.index)
            if call.arguments:
                said += self._delta({"type": "input_json_delta", "partial_json": call.arguments})
        return said

    def ending(self, last: Chunk, usage: Usage) -> bytes:
        """Closes what is open; then why it ended, and the usage."""
        delta = _why(last)
        return (
            self._begin()
            + self._close()
            + _event("message_delta", delta=delta, usage=_usage(usage))
            + _event("message_stop")
        )

    def failure(self, error: LorikeetError) -> bytes:
        """The v4 envelope, which is an Anthropic error too."""
        return _encode({"type": "error", **error_body(error), "error": _error(error)})

    def failure_event(self, error: LorikeetError) -> bytes:
        """`error`: Anthropic's clients raise when they meet it in a stream."""
        return _event("error", error=_error(error))

    def _begin(self) -> bytes:
        if self._begun:
            return b""
        self._begun = True
        return _event("message_start", message=self._message([], _UNENDED, _usage(Usage(0, 0))))

    def _open(self, block: dict[str, Any], call: int | None) -> bytes:
        self._index, self._is_open, self._call = self._index + 1, True, call
        return _event("content_block_start", index=self._index, content_block=block)

    def _delta(self, delta: dict[str, Any]) -> bytes:
        return _event("content_block_delta", index=self._index, delta=delta)

    def _close(self) -> bytes:
        if not self._is_open:
            return b""
        self._is_open = False
        return _event("content_block_stop", index=self._index)

    def _message(self, content: list[Any], why: dict[str, str | None], usage: dict[str, Any]) -> dict[str, Any]:
        return {
            "id": self._id,
            "type": "message",
            "role": "assistant",
            "model": self._model,
            "content": content,
            **why,
            "usage": usage,
        }


def _why(last: Chunk) -> dict[str, str | None]:
    """Of the caller's own sequences the one that ended the answer is told by name."""
    reason = "stop_sequence" if last.stop_string is not None else _REASONS[last.finish_reason]
    return {"stop_reason": reason, "stop_sequence": last.stop_string}


def _error(error: LorikeetError) -> dict[str, Any]:
    default = "api_error" if error.status >= 500 else "invalid_request_error"
    told = {"type": _ERROR_TYPES.get(error.status, default), "message": error.message}
    return {**told, "code": str(error.code), "param": error.param}


def _event(name: str, **told: Any) -> bytes:
    return sse.named_event(name, {"type": name, **told})


def _call(call: ToolCallDelta) -> dict[str, Any]:
    return {"type": "tool_use", "id": call.id, "name": call.name}


def _usage(usage: Usage) -> dict[str, Any]:
    """Input tokens are those that no cache had, in this dialect."""
    return {
        "input_tokens": usage.prompt_tokens - usage.cached_tokens,
        "cache_creation_input_tokens": 0,
        "cache_read_input_tokens": usage.cached_tokens,
        "output_tokens": usage.completion_tokens,
    }
