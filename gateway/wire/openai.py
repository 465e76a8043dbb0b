"""The OpenAI dialect: `/ai/v1/chat/completions` with `lora` as one more field of the body; standard objects out."""

from typing import Any, Final

import msgspec

from gateway.errors import LorikeetError
from gateway.messages import ChatRequest, FinishReason, Usage
from gateway.wire import chat_body, sse
from gateway.wire.envelope import error_body
from gateway.wire.sampling_fields import sampling

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
    prompt, messages = chat_body.conversation(fields)
    if messages is None:
        chat_body.bad("'messages' is missing; this route takes no 'prompt'", "messages")
    chosen = sampling(fields, seed_range=_SEEDS)
    if chosen.seed is not None:
        chosen = msgspec.structs.replace(chosen, seed=chosen.seed & _SEED_MASK)
    busy = fields.options.reject_if_busy if fields.options else None
    usage = fields.stream_options.include_usage if fields.stream_options else None
    return ChatRequest(
        dialect="openai",
        model=fields.model,
        lora=fields.lora or None,
        prompt=prompt,
        messages=messages,
        raw=chat_body.flag("raw", fields.raw),
        stream=chat_body.flag("stream", fields.stream),
        include_usage=chat_body.flag("stream_options.include_usage", usage),
        reject_if_busy=chat_body.flag("options.rejectIfBusy", busy),
        sampling=chosen,
    )


class OpenAIReply:
    """`gateway.wire.reply.Reply` in OpenAI's shape. `describe` is called once the request is known."""

    def __init__(self, log_id: str, created: int) -> None:
        self._id = f"chatcmpl-{log_id}"
        self._created = created
        self._model = ""
        self._include_usage = False
        self._role_sent = False

    def describe(self, request: ChatRequest) -> None:
        """The caller's own words for the model come back, and usage in a stream only if asked for."""
        self._model, self._include_usage = request.model, request.include_usage

    def whole(self, text: str, finish_reason: FinishReason, usage: Usage) -> bytes:
        """A `chat.completion`."""
        message = {"role": "assistant", "content": text, "refusal": None}
        choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": finish_reason}
        return _encode({**self._head("chat.completion"), "choices": [choice], "usage": _usage(usage)})

    def piece(self, text: str) -> bytes:
        """A `chat.completion.chunk`."""
        return self._chunk({"content": text}, None)

    def ending(self, finish_reason: FinishReason, usage: Usage) -> bytes:
        """The chunk with the finish reason, then, if asked for, the one with `usage` and no choices."""
        last = self._chunk({}, finish_reason)
        if not self._include_usage:
            return last
        return last + sse.event({**self._head("chat.completion.chunk"), "choices": [], "usage": _usage(usage)})

    def failure(self, error: LorikeetError) -> bytes:
        """The v4 envelope with OpenAI's `error` beside it."""
        return _encode(error_body(error, openai=True))

    def failure_event(self, error: LorikeetError) -> bytes:
        """`{"error": …}`: OpenAI's clients raise when they meet it in a stream."""
        return sse.event({"error": error_body(error, openai=True)["error"]})

    def _chunk(self, delta: dict[str, str], finish_reason: FinishReason | None) -> bytes:
        if not self._role_sent:
            self._role_sent = True
            delta = {"role": "assistant", "content": "", **delta}
        choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish_reason}
        return sse.event({**self._head("chat.completion.chunk"), "choices": [choice]})

    def _head(self, kind: str) -> dict[str, Any]:
        return {"id": self._id, "object": kind, "created": self._created, "model": self._model}


def models_list(models: list[tuple[str, int]]) -> dict[str, Any]:
    """`GET /ai/v1/models`: (name, Unix seconds of creation) of each model."""
    data = [{"id": name, "object": "model", "created": created, "owned_by": "lorikeet"} for name, created in models]
    return {"object": "list", "data": data}


def _usage(usage: Usage) -> dict[str, Any]:
    return chat_body.usage_object(usage.prompt_tokens, usage.completion_tokens, usage.cached_tokens)
