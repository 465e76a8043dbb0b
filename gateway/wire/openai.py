"""The OpenAI dialect: `/ai/v1/chat/completions` with `lora` as one more field of the body; standard objects out."""

from collections.abc import Iterable, Sequence
from typing import Any, Final

import msgspec

from gateway.errors import LorikeetError
from gateway.messages import ChatRequest, Chunk, FinishReason, ScoredText, TokenLogprob, ToolCallDelta, Usage
from gateway.wire import chat_body, sse
from gateway.wire.body import ChatBody
from gateway.wire.chat_request import chat_request
from gateway.wire.envelope import error_body

_encode = msgspec.json.Encoder().encode
_decoder: Final = msgspec.json.Decoder(ChatBody)


def parse(body: bytes, query: Iterable[tuple[str, str]] = ()) -> ChatRequest:
    """Settings may also stand in the query string; the body wins. Raises BadInput, EmptyBody."""
    fields = chat_body.decode_as(_decoder, body)
    chat_body.merge_query(fields, query)
    model = chat_body.required_model(fields)
    if fields.messages is None and fields.prompt is None:
        chat_body.bad("'messages' is missing", "messages")
    asked = chat_request(fields, model, "openai")
    if asked.messages is None:
        chat_body.bad("'messages' is missing; 'prompt' belongs to /ai/v1/completions", "messages")
    return asked


class OpenAIReply:
    """`gateway.wire.reply.Reply` in OpenAI's shape. `describe` is called once the request is known."""

    def __init__(self, log_id: str, created: int) -> None:
        self._id = f"chatcmpl-{log_id}"
        self._created = created
        self._model = ""
        self._include_usage = False
        self._begun: set[int] = set()
        self._before_text = b""  # of a plain piece: everything but its index and its text

    def describe(self, request: ChatRequest) -> None:
        """The caller's own words for the model come back, and usage in a stream only if asked for."""
        self._model, self._include_usage = request.model, request.include_usage

    def whole(self, choices: Sequence[Chunk], usage: Usage) -> bytes:
        """A `chat.completion`."""
        said = [
            {
                "index": choice.index,
                "message": _message(choice),
                "logprobs": _logprobs(choice.logprobs),
                "finish_reason": choice.finish_reason,
            }
            for choice in choices
        ]
        return _encode({**self._head("chat.completion"), "choices": said, "usage": _usage(usage)})

    def piece(self, chunk: Chunk) -> bytes:
        """A `chat.completion.chunk`, and another one when a choice ends while others go on."""
        plain = chunk.text and not chunk.tool_calls and chunk.logprobs is None and chunk.finish_reason is None
        if plain and chunk.index in self._begun:
            return self._plain(chunk)
        said = b""
        if chunk.text or (chunk.logprobs and not chunk.tool_calls):
            said = self._chunk(chunk.index, {"content": chunk.text}, logprobs=chunk.logprobs)
        if chunk.tool_calls:
            calls = [_piece(call) for call in chunk.tool_calls]
            said += self._chunk(chunk.index, {"tool_calls": calls}, logprobs=None if chunk.text else chunk.logprobs)
        if chunk.finish_reason is not None and chunk.usage is None:
            said += self._chunk(chunk.index, {}, chunk.finish_reason)
        return said

    def ending(self, last: Chunk, usage: Usage) -> bytes:
        """The chunk with the finish reason, then, if asked for, the one with `usage` and no choices."""
        said = self._chunk(last.index, {}, last.finish_reason)
        if self._include_usage:
            said += sse.event({**self._head("chat.completion.chunk"), "choices": [], "usage": _usage(usage)})
        return said + sse.DONE

    def failure(self, error: LorikeetError) -> bytes:
        """The v4 envelope with OpenAI's `error` beside it."""
        return _encode(error_body(error, openai=True))

    def failure_event(self, error: LorikeetError) -> bytes:
        """`{"error": …}`: OpenAI's clients raise when they meet it in a stream."""
        return sse.event({"error": error_body(error, openai=True)["error"]})

    def _plain(self, chunk: Chunk) -> bytes:
        """What nearly every piece is, put together from what never changes: a third of the time of encoding it."""
        before = self._before_text
        if not before:
            head = _encode(self._head("chat.completion.chunk"))[:-1]
            before = self._before_text = b"data: " + head + b',"choices":[{"index":'
        text = _encode(chunk.text)
        return b'%b%d,"delta":{"content":%b},"logprobs":null,"finish_reason":null}]}\n\n' % (before, chunk.index, text)

    def _chunk(
        self,
        index: int,
        delta: dict[str, Any],
        finish_reason: FinishReason | None = None,
        logprobs: tuple[TokenLogprob, ...] | None = None,
    ) -> bytes:
        if index not in self._begun:
            self._begun.add(index)
            delta = {"role": "assistant", "content": None if "tool_calls" in delta else "", **delta}
        choice = {"index": index, "delta": delta, "logprobs": _logprobs(logprobs), "finish_reason": finish_reason}
        return sse.event({**self._head("chat.completion.chunk"), "choices": [choice]})

    def _head(self, kind: str) -> dict[str, Any]:
        return {"id": self._id, "object": kind, "created": self._created, "model": self._model}


def model_object(name: str, created: int) -> dict[str, Any]:
    """One of `GET /ai/v1/models`; `created` in Unix seconds."""
    return {"id": name, "object": "model", "created": created, "owned_by": "lorikeet"}


def _message(choice: Chunk) -> dict[str, Any]:
    """The content is null when there are calls and no text."""
    said: dict[str, Any] = {"role": "assistant", "content": choice.text, "refusal": None}
    if choice.tool_calls:
        said["content"] = choice.text or None
        said["tool_calls"] = [
            {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": call.arguments}}
            for call in choice.tool_calls
        ]
    return said


def _piece(call: ToolCallDelta) -> dict[str, Any]:
    """Id, type and name in a call's first piece only: clients join the texts of what comes again."""
    if call.id is None:
        return {"index": call.index, "function": {"arguments": call.arguments}}
    function = {"name": call.name, "arguments": call.arguments}
    return {"index": call.index, "id": call.id, "type": "function", "function": function}


def _logprobs(tokens: tuple[TokenLogprob, ...] | None) -> dict[str, Any] | None:
    if tokens is None:
        return None
    content = [{**_scored(token), "top_logprobs": [_scored(other) for other in token.top]} for token in tokens]
    return {"content": content, "refusal": None}


def _scored(token: ScoredText) -> dict[str, Any]:
    return {"token": token.text, "logprob": token.logprob, "bytes": list(token.data)}


def _usage(usage: Usage) -> dict[str, Any]:
    return chat_body.usage_object(usage.prompt_tokens, usage.completion_tokens, usage.cached_tokens)
