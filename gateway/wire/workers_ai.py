"""The native dialect of Workers AI: `/ai/run/{model}` in, the v4 envelope or `{"response": …}` events out."""

from collections.abc import Iterable, Sequence
from typing import Annotated, Final

import msgspec

from gateway.errors import JsonModeUnmet, LorikeetError
from gateway.messages import ChatRequest, Chunk, ToolCallDelta, Usage
from gateway.wire import chat_body, sse
from gateway.wire.body import said
from gateway.wire.chat_request import chat_request
from gateway.wire.envelope import error_body

_encode = msgspec.json.Encoder().encode


class RunBody(msgspec.Struct):
    """`POST /ai/run`: the model stands in the body, and the native body in `input`."""

    model: Annotated[str, said("A model of the catalogue.")]
    input: Annotated[msgspec.Raw, said("What /ai/run/{model} takes as its body.", type="object")]
    provider: str | None = None


class _Named(msgspec.Struct):
    model: str


_run_decoder: Final = msgspec.json.Decoder(RunBody)
_model_decoder: Final = msgspec.json.Decoder(_Named)


def parse(body: bytes, query: Iterable[tuple[str, str]], model: str) -> ChatRequest:
    """Settings may also stand in the query string; the body wins. Raises BadInput, EmptyBody."""
    fields = chat_body.decode(body)
    chat_body.merge_query(fields, query)
    asked = chat_request(fields, model, "workers_ai")
    if asked.sampling.n != 1:
        chat_body.bad("'n' must be 1 on this route; /ai/v1/chat/completions gives several answers", "n")
    if asked.sampling.top_logprobs is not None:
        chat_body.bad("'logprobs' is not supported on this route; /ai/v1/chat/completions has it", "logprobs")
    return asked


def unwrap(body: bytes) -> tuple[str, bytes]:
    """(model, native body) of a `RunBody`. Raises BadInput, EmptyBody."""
    run = chat_body.decode_as(_run_decoder, body)
    if not run.model:
        chat_body.bad("'model' is empty; name a model of the catalogue", "model")
    return run.model, bytes(run.input)


def named_model(body: bytes) -> str | None:
    """Which model a `RunBody` names; None where that cannot be said, which `unwrap` explains."""
    try:
        return _model_decoder.decode(body).model
    except (msgspec.DecodeError, UnicodeError, RecursionError):
        return None


class WorkersAIReply:
    """`gateway.wire.reply.Reply` in the native shape. `describe` is called once the request is known."""

    def __init__(self) -> None:
        self._is_json = False

    def describe(self, request: ChatRequest) -> None:
        """In JSON mode the answer is a value, not its text."""
        self._is_json = request.json_schema is not None

    def whole(self, choices: Sequence[Chunk], usage: Usage) -> bytes:
        """The envelope; a finish reason has no place in the documented shape of these models.

        Raises JsonModeUnmet for an answer that was to be JSON and ended before it was.
        """
        text = "".join(choice.text for choice in choices)
        is_json = self._is_json and not (text == "" and any(choice.tool_calls for choice in choices))
        result: dict[str, object] = {"response": _json(text, choices) if is_json else text}
        if calls := [_call(call) for choice in choices for call in choice.tool_calls]:
            result["tool_calls"] = calls
        result["usage"] = _usage(usage)
        return _encode({"result": result, "success": True, "errors": [], "messages": []})

    def piece(self, chunk: Chunk) -> bytes:
        """`{"response": "…"}`, and an event for the calls: whole ones, each told once.

        Here they have an index too: Cloudflare's own client takes calls without one for pieces of one call.
        """
        said = b'data: {"response":%b}\n\n' % _encode(chunk.text) if chunk.text else b""
        if chunk.tool_calls:
            calls = [{"index": call.index, **_call(call)} for call in chunk.tool_calls]
            said += sse.event({"response": "", "tool_calls": calls})
        return said

    def ending(self, last: Chunk, usage: Usage) -> bytes:
        """The one event that has `usage`, with an empty response: clients that add usages up count it once."""
        return sse.event({"response": "", "usage": _usage(usage)}) + sse.DONE

    def failure(self, error: LorikeetError) -> bytes:
        """The v4 envelope; the result of a failed inference is an empty object, not null."""
        return _encode({**error_body(error), "result": {}})

    def failure_event(self, error: LorikeetError) -> bytes:
        """The errors of the envelope as an event."""
        return sse.event({"errors": [{"code": error.code, "message": error.message}], "success": False})


def _json(text: str, choices: Sequence[Chunk]) -> msgspec.Raw:
    """The value exactly as the model wrote it."""
    try:
        return msgspec.json.decode(text, type=msgspec.Raw)
    except msgspec.DecodeError:
        was_cut = any(choice.finish_reason == "length" for choice in choices)
        why = "it needs more than max_tokens allows; raise it" if was_cut else "it ended at 'stop' or 'stop_token_ids'"
        raise JsonModeUnmet(f"AiError: JSON Mode couldn't be met: the answer is incomplete: {why}") from None


def _call(call: ToolCallDelta) -> dict[str, object]:
    """Flat, and the arguments as an object: this dialect's answers get whole calls only."""
    return {"name": call.name, "arguments": msgspec.Raw(call.arguments.encode())}


def _usage(usage: Usage) -> dict[str, object]:
    return chat_body.usage_object(usage.prompt_tokens, usage.completion_tokens, usage.cached_tokens)
