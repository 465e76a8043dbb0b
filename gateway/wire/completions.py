"""OpenAI's older `/ai/v1/completions`: one `prompt` in, which is continued as it stands, `text_completion` objects out.

The prompt skips the chat template, as everywhere where this call is served; `"raw": false` wraps it in the template.
`logprobs` is a number here: that of the alternatives told beside each token.
"""

from collections.abc import Iterable, Sequence
from typing import Annotated, Any, Final

import msgspec

from gateway.errors import LorikeetError
from gateway.messages import ChatRequest, Chunk, FinishReason, TokenLogprob, Usage
from gateway.wire import chat_body, sse
from gateway.wire.body import SEED, TOP_P, Body, Scalar, ranged, said
from gateway.wire.chat_request import chat_request
from gateway.wire.envelope import error_body

_encode = msgspec.json.Encoder().encode
MAX_LOGPROBS: Final = 5
_OneText = Annotated[
    str | list[str] | None,
    said(
        "Text to continue, or a list of one.",
        type=["string", "array"], minLength=1, minItems=1, maxItems=1, items={"type": "string", "minLength": 1},
    ),
]  # fmt: skip


class CompletionBody(Body):
    """What is refused is named here, because leaving it out silently would change the answer."""

    prompt: _OneText = None  # type: ignore[assignment]  # wider than elsewhere; one text before anybody else reads it
    seed: Annotated[Scalar, SEED] = None
    top_p: Annotated[Scalar, TOP_P] = None
    logprobs: Annotated[Scalar, ranged("integer", 0, MAX_LOGPROBS, "Alternatives told beside each token.")] = None
    raw: Annotated[Scalar, said("false wraps the prompt in the chat template.", type="boolean", default=True)] = None
    echo: Annotated[Scalar, said("Only false.", type="boolean", default=False)] = None
    suffix: Annotated[str | None, said("Not supported; leave it out.", maxLength=0)] = None


_decoder: Final = msgspec.json.Decoder(CompletionBody)


def parse(body: bytes, query: Iterable[tuple[str, str]] = ()) -> ChatRequest:
    """Settings may also stand in the query string; the body wins. Raises BadInput, EmptyBody."""
    fields = chat_body.decode_as(_decoder, body)
    chat_body.merge_query(fields, query)
    model = chat_body.required_model(fields)
    if fields.messages is not None:
        chat_body.bad("'messages' belong to /ai/v1/chat/completions; send 'prompt' here", "messages")
    if isinstance(fields.prompt, list):  # LangChain and evaluation harnesses send even one as a list
        if len(fields.prompt) != 1:
            chat_body.bad("'prompt' must be one text, or a list of one; send one request per prompt", "prompt")
        fields.prompt = fields.prompt[0]
    if fields.prompt is None:
        chat_body.bad("'prompt' is missing; send one text", "prompt")
    if chat_body.flag("echo", fields.echo) or fields.suffix:
        chat_body.bad("'echo' and 'suffix' are not supported; leave them out", "suffix" if fields.suffix else "echo")
    if fields.raw is None:
        fields.raw = True
    if fields.logprobs is not None and fields.logprobs is not False:
        fields.top_logprobs = chat_body.whole("logprobs", fields.logprobs, (0, MAX_LOGPROBS))
        fields.logprobs = True
    return chat_request(fields, model, "openai")


class CompletionReply:
    """`gateway.wire.reply.Reply` in this shape. `describe` is called once the request is known."""

    def __init__(self, log_id: str, created: int) -> None:
        self._id = f"cmpl-{log_id}"
        self._created = created
        self._model = ""
        self._include_usage = False
        self._offsets: dict[int, int] = {}

    def describe(self, request: ChatRequest) -> None:
        """The caller's own words for the model come back, and usage in a stream only if asked for."""
        self._model, self._include_usage = request.model, request.include_usage

    def whole(self, choices: Sequence[Chunk], usage: Usage) -> bytes:
        """A `text_completion`."""
        said = [self._choice(choice, choice.finish_reason) for choice in choices]
        return _encode({**self._head(), "choices": said, "usage": _usage(usage)})

    def piece(self, chunk: Chunk) -> bytes:
        """One event of text, and one when a choice ends while others go on."""
        said = b""
        if chunk.text or chunk.logprobs:
            said = sse.event({**self._head(), "choices": [self._choice(chunk, None)]})
        if chunk.finish_reason is not None and chunk.usage is None:
            said += self._end(chunk)
        return said

    def ending(self, last: Chunk, usage: Usage) -> bytes:
        """The finish reason, then, if asked for, the usage."""
        said = self._end(last)
        if self._include_usage:
            said += sse.event({**self._head(), "choices": [], "usage": _usage(usage)})
        return said + sse.DONE

    def failure(self, error: LorikeetError) -> bytes:
        """The v4 envelope with OpenAI's `error` beside it."""
        return _encode(error_body(error, openai=True))

    def failure_event(self, error: LorikeetError) -> bytes:
        """`{"error": …}`: OpenAI's clients raise when they meet it in a stream."""
        return sse.event({"error": error_body(error, openai=True)["error"]})

    def _end(self, chunk: Chunk) -> bytes:
        ended = Chunk("", chunk.finish_reason, index=chunk.index)
        return sse.event({**self._head(), "choices": [self._choice(ended, chunk.finish_reason)]})

    def _choice(self, chunk: Chunk, finish_reason: FinishReason | None) -> dict[str, Any]:
        logprobs = None if chunk.logprobs is None else self._scores(chunk.index, chunk.logprobs)
        return {"index": chunk.index, "text": chunk.text, "logprobs": logprobs, "finish_reason": finish_reason}

    def _scores(self, index: int, tokens: Sequence[TokenLogprob]) -> dict[str, Any]:
        """Parallel lists, one entry a token; offsets count characters from the beginning of the answer."""
        offset, offsets = self._offsets.get(index, 0), []
        for token in tokens:
            offsets.append(offset)
            offset += len(token.text)
        self._offsets[index] = offset
        return {
            "tokens": [token.text for token in tokens],
            "token_logprobs": [token.logprob for token in tokens],
            "top_logprobs": [{other.text: other.logprob for other in token.top} for token in tokens],
            "text_offset": offsets,
        }

    def _head(self) -> dict[str, Any]:
        return {"id": self._id, "object": "text_completion", "created": self._created, "model": self._model}


def _usage(usage: Usage) -> dict[str, Any]:
    return chat_body.usage_object(usage.prompt_tokens, usage.completion_tokens, usage.cached_tokens)
