"""The OpenAI dialect: `/ai/v1/chat/completions` with `lora` as one more field of the body; standard objects out."""

from collections.abc import Sequence
from typing import Any, Final

import msgspec

from gateway.errors import LorikeetError
from gateway.messages import ChatRequest, Chunk, FinishReason, ScoredText, TokenLogprob, ToolCallDelta, Usage
from gateway.wire import chat_body, sse
from gateway.wire.envelope import error_body
from gateway.wire.priority_field import priority
from gateway.wire.response_format import json_schema
from gateway.wire.sampling_fields import sampling
from gateway.wire.tools import tools
from gateway.wire.turns import conversation

_encode = msgspec.json.Encoder().encode
# OpenAI's own clients send 0 and negative seeds too; the runtime takes the lower 63 bits.
_SEEDS: Final = (-(2**63), 2**63 - 1)
_SEED_MASK: Final = 2**63 - 1


def parse(body: bytes) -> ChatRequest:
    """Raises BadInput, EmptyBody."""
    fields = chat_body.decode(body)
    if not fields.model:
        chat_body.bad("'model' is missing; name a model of the catalogue", "model")
    chat_body.refuse_unsupported(fields)
    prompt, messages = conversation(fields)
    if messages is None:
        chat_body.bad("'messages' is missing; this route takes no 'prompt'", "messages")
    chosen = sampling(fields, seed_range=_SEEDS)
    if chosen.seed is not None:
        chosen = msgspec.structs.replace(chosen, seed=chosen.seed & _SEED_MASK)
    raw = chat_body.flag("raw", fields.raw)
    offered, choice = tools(fields, has_messages=messages is not None, raw=raw)
    busy = fields.options.reject_if_busy if fields.options else None
    usage = fields.stream_options.include_usage if fields.stream_options else None
    return ChatRequest(
        dialect="openai",
        model=fields.model,
        lora=fields.lora or None,
        prompt=prompt,
        messages=messages,
        raw=raw,
        stream=chat_body.flag("stream", fields.stream),
        include_usage=chat_body.flag("stream_options.include_usage", usage),
        reject_if_busy=chat_body.flag("options.rejectIfBusy", busy),
        sampling=chosen,
        json_schema=json_schema(fields),
        priority=priority(fields),
        tools=offered,
        tool_choice=choice,
    )


class OpenAIReply:
    """`gateway.wire.reply.Reply` in OpenAI's shape. `describe` is called once the request is known."""

    def __init__(self, log_id: str, created: int) -> None:
        self._id = f"chatcmpl-{log_id}"
        self._created = created
        self._model = ""
        self._include_usage = False
        self._begun: set[int] = set()

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
        if not self._include_usage:
            return said
        return said + sse.event({**self._head("chat.completion.chunk"), "choices": [], "usage": _usage(usage)})

    def failure(self, error: LorikeetError) -> bytes:
        """The v4 envelope with OpenAI's `error` beside it."""
        return _encode(error_body(error, openai=True))

    def failure_event(self, error: LorikeetError) -> bytes:
        """`{"error": …}`: OpenAI's clients raise when they meet it in a stream."""
        return sse.event({"error": error_body(error, openai=True)["error"]})

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


def models_list(models: list[tuple[str, int]]) -> dict[str, Any]:
    """`GET /ai/v1/models`: (name, Unix seconds of creation) of each model."""
    data = [{"id": name, "object": "model", "created": created, "owned_by": "lorikeet"} for name, created in models]
    return {"object": "list", "data": data}


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
