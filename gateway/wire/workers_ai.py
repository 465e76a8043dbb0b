"""The native dialect of Workers AI: `/ai/run/{model}` in, the v4 envelope or `{"response": …}` events out."""

from collections.abc import Iterable

import msgspec

from gateway.errors import LorikeetError
from gateway.messages import ChatRequest, FinishReason, Usage
from gateway.wire import chat_body, sse
from gateway.wire.envelope import error_body
from gateway.wire.sampling_fields import sampling

_encode = msgspec.json.Encoder().encode


def parse(body: bytes, query: Iterable[tuple[str, str]], model: str) -> ChatRequest:
    """Settings may also stand in the query string; the body wins. Raises BadInput, EmptyBody."""
    fields = chat_body.decode(body)
    settings = list(query)
    chat_body.merge_query(fields, settings)
    if any(name == "queueRequest" and text.lower() == "true" for name, text in settings):
        chat_body.bad("queued requests ('queueRequest') are not supported; leave it out", "queueRequest")
    chat_body.refuse_unsupported(fields)
    prompt, messages = chat_body.conversation(fields)
    busy = fields.options.reject_if_busy if fields.options else None
    return ChatRequest(
        dialect="workers_ai",
        model=model,
        lora=fields.lora or None,
        prompt=prompt,
        messages=messages,
        raw=chat_body.flag("raw", fields.raw),
        stream=chat_body.flag("stream", fields.stream),
        reject_if_busy=chat_body.flag("options.rejectIfBusy", busy),
        sampling=sampling(fields),
    )


class WorkersAIReply:
    """`gateway.wire.reply.Reply` in the native shape."""

    def whole(self, text: str, finish_reason: FinishReason, usage: Usage) -> bytes:
        """The envelope; `finish_reason` has no place in the documented shape of these models."""
        result = {"response": text, "usage": _usage(usage)}
        return _encode({"result": result, "success": True, "errors": [], "messages": []})

    def piece(self, text: str) -> bytes:
        """`{"response": "…"}`"""
        return sse.event({"response": text})

    def ending(self, finish_reason: FinishReason, usage: Usage) -> bytes:
        """The one event that has `usage`, with an empty response: clients that add usages up count it once."""
        return sse.event({"response": "", "usage": _usage(usage)})

    def failure(self, error: LorikeetError) -> bytes:
        """The v4 envelope."""
        return _encode(error_body(error))

    def failure_event(self, error: LorikeetError) -> bytes:
        """The errors of the envelope as an event."""
        return sse.event({"errors": [{"code": error.code, "message": error.message}], "success": False})


def _usage(usage: Usage) -> dict[str, object]:
    return chat_body.usage_object(usage.prompt_tokens, usage.completion_tokens, usage.cached_tokens)
