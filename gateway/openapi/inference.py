"""The calls that answer: bodies are the parsers' own types, replies are typed here."""

from typing import Any, Final, Literal

import msgspec

from gateway.endpoints import embeddings, openai, run, token_count
from gateway.openapi.operation import Failure, Form, Operation, Query, settings_in_query
from gateway.settings import DEMO_MODEL
from gateway.wire.anthropic_body import MessagesBody
from gateway.wire.body import Body, ChatBody
from gateway.wire.completions import CompletionBody
from gateway.wire.embeddings import EmbedBody, EmbeddingsBody, RankBody
from gateway.wire.encoder_schema import EmbedResult, RankResult
from gateway.wire.responses_body import ResponsesBody
from gateway.wire.workers_ai import RunBody

_HELLO: Final = [{"role": "user", "content": "Which hall opens first?"}]
_BATCH: Final = frozenset({"requests", "request_id"})
_LEGACY: Final = frozenset({"functions", "function_call"})
_NOT_CHAT: Final = _BATCH | _LEGACY | {"prompt"}
_NOT_COMPLETION: Final = _BATCH | _LEGACY | {
    "messages", "tools", "tool_choice", "parallel_tool_calls", "response_format", "top_logprobs",
    "max_completion_tokens",
}  # fmt: skip
_NOT_NATIVE: Final = _BATCH | _LEGACY | {
    "model", "n", "best_of", "logprobs", "top_logprobs", "stream_options", "max_completion_tokens",
}  # fmt: skip


class Details(msgspec.Struct):
    """Of the prompt's tokens."""

    cached_tokens: int


class Usage(msgspec.Struct):
    """Tokens."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: Details | msgspec.UnsetType = msgspec.UNSET


class FlatCall(msgspec.Struct):
    """What the model asks to be called."""

    name: str
    arguments: dict[str, Any]


class RunResult(msgspec.Struct):
    """`response` is text; in JSON mode the value itself."""

    response: Any
    usage: Usage
    tool_calls: list[FlatCall] | msgspec.UnsetType = msgspec.UNSET


class Queued(msgspec.Struct):
    """A batch that waits or is at work."""

    status: Literal["queued", "running"]
    request_id: str
    model: str | msgspec.UnsetType = msgspec.UNSET


class BatchAnswer(msgspec.Struct):
    """One answer of a batch; `id` is its place among the requests, `errors` says why there is none."""

    id: int
    result: dict[str, Any]
    success: bool
    external_reference: str | None
    errors: list[Failure] | msgspec.UnsetType = msgspec.UNSET


class BatchDone(msgspec.Struct):
    """All answers of a batch, in the order in which they came to be."""

    responses: list[BatchAnswer]
    usage: Usage


class CalledFunction(msgspec.Struct):
    """Arguments are JSON as text."""

    name: str
    arguments: str


class ChatCall(msgspec.Struct):
    """A call with its id."""

    id: str
    type: Literal["function"]
    function: CalledFunction


class ChatMessage(msgspec.Struct):
    """The content is null when there are calls and no text."""

    role: Literal["assistant"]
    content: str | None
    refusal: str | None
    tool_calls: list[ChatCall] | msgspec.UnsetType = msgspec.UNSET


class ChatChoice(msgspec.Struct):
    """One answer."""

    index: int
    message: ChatMessage
    logprobs: dict[str, Any] | None
    finish_reason: Literal["stop", "length", "tool_calls"]


class ChatCompletion(msgspec.Struct):
    """OpenAI's object."""

    id: str
    object: Literal["chat.completion"]
    created: int
    model: str
    choices: list[ChatChoice]
    usage: Usage


class TextChoice(msgspec.Struct):
    """One continuation."""

    index: int
    text: str
    logprobs: dict[str, Any] | None
    finish_reason: Literal["stop", "length"]


class TextCompletion(msgspec.Struct):
    """OpenAI's older object."""

    id: str
    object: Literal["text_completion"]
    created: int
    model: str
    choices: list[TextChoice]
    usage: Usage


class ResponseUsage(msgspec.Struct):
    """Tokens."""

    input_tokens: int
    input_tokens_details: dict[str, int]
    output_tokens: int
    output_tokens_details: dict[str, int]
    total_tokens: int


class ResponseObject(msgspec.Struct):
    """OpenAI's `response`; `output` holds messages and function calls."""

    id: str
    object: Literal["response"]
    created_at: int
    status: Literal["completed", "incomplete"]
    model: str
    output: list[dict[str, Any]]
    usage: ResponseUsage
    error: None
    incomplete_details: dict[str, str] | None
    instructions: str | None
    metadata: dict[str, Any]
    store: bool


class MessageUsage(msgspec.Struct):
    """Tokens; those of the prompt that a cache had are counted apart."""

    input_tokens: int
    output_tokens: int
    cache_read_input_tokens: int
    cache_creation_input_tokens: int


class MessageObject(msgspec.Struct):
    """Anthropic's `message`; `content` holds text and tool_use blocks."""

    id: str
    type: Literal["message"]
    role: Literal["assistant"]
    model: str
    content: list[dict[str, Any]]
    stop_reason: Literal["end_turn", "max_tokens", "stop_sequence", "tool_use"]
    stop_sequence: str | None
    usage: MessageUsage


class TokenCount(msgspec.Struct):
    """Of a prompt."""

    input_tokens: int


class Embedding(msgspec.Struct):
    """A vector: numbers, or base64 of little-endian float32."""

    object: Literal["embedding"]
    index: int
    embedding: list[float] | str


class EmbeddingUsage(msgspec.Struct):
    """Tokens."""

    prompt_tokens: int
    total_tokens: int


class EmbeddingList(msgspec.Struct):
    """OpenAI's list."""

    object: Literal["list"]
    data: list[Embedding]
    model: str
    usage: EmbeddingUsage


class ModelObject(msgspec.Struct):
    """A model in OpenAI's words."""

    id: str
    object: Literal["model"]
    created: int
    owned_by: str


class ModelList(msgspec.Struct):
    """All of them."""

    object: Literal["list"]
    data: list[ModelObject]


OPERATIONS: Final = {
    run.run: Operation(
        "Text generation, also in batches; embeddings and reranking", RunResult,
        body=Body, without=_NOT_NATIVE, one_of=("prompt", "messages"),
        other_bodies=(
            Form(Body, frozenset({"requests"}), ("requests",)), Form(Body, frozenset({"request_id"}), ("request_id",)),
            Form(EmbedBody, frozenset({"text", "pooling"}), ("text",)),
            Form(RankBody, frozenset({"query", "contexts", "top_k"}), ("query", "contexts")),
        ),
        other_replies=(Queued, BatchDone, EmbedResult, RankResult),
        query=(
            Query("queueRequest", "true: a batch, answered later.", {"type": "string", "enum": ["true", "false"]}),
        ),
        example={"messages": _HELLO, "max_tokens": 64, "temperature": 0}, is_stream=True,
    ),
    run.run_named: Operation(
        "The native call with the model in the body", RunResult, body=RunBody, is_stream=True,
        other_replies=(EmbedResult, RankResult),
        query=settings_in_query(Body),
        example={"model": DEMO_MODEL, "input": {"prompt": "Which hall opens first?", "max_tokens": 64}},
    ),
    openai.chat_completions: Operation(
        "OpenAI chat completions", ChatCompletion, "none", body=ChatBody, without=_NOT_CHAT, is_stream=True,
        one_of=("messages",), example={"model": DEMO_MODEL, "messages": _HELLO, "max_tokens": 64},
    ),
    openai.complete: Operation(
        "OpenAI completions: a prompt, continued", TextCompletion, "none", body=CompletionBody, ours=True,
        without=_NOT_COMPLETION, one_of=("prompt",), is_stream=True,
        example={"model": DEMO_MODEL, "prompt": "The first hall", "max_tokens": 64},
    ),
    openai.responses: Operation(
        "OpenAI responses, without memory of earlier ones", ResponseObject, "none", body=ResponsesBody, is_stream=True,
        example={"model": DEMO_MODEL, "input": "Which hall opens first?", "max_output_tokens": 64},
    ),
    openai.messages: Operation(
        "Anthropic messages", MessageObject, "none", body=MessagesBody, is_stream=True,
        example={"model": DEMO_MODEL, "messages": _HELLO, "max_tokens": 64},
    ),
    token_count.count_tokens: Operation(
        "How many tokens the prompt of Anthropic messages has", TokenCount, "none", body=MessagesBody, ours=True,
        example={"model": DEMO_MODEL, "messages": _HELLO},
    ),
    embeddings.create_embeddings: Operation(
        "OpenAI embeddings", EmbeddingList, "none", body=EmbeddingsBody, one_of=("input",),
        example={"model": "@cf/baai/bge-base-en-v1.5", "input": ["Which hall opens first?"]},
    ),
    openai.list_models: Operation("The models that are served, for OpenAI's clients", ModelList, "none", ours=True),
    openai.get_model: Operation("One of them", ModelObject, "none", ours=True),
}  # fmt: skip
