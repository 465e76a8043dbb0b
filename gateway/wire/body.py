"""The fields of an inference request as types: what the parser reads by, and what published descriptions are made of.

Each field says in its `Annotated` type what it is for and within which bounds; no bound stands anywhere else. Ranges
are those of the public schema of the `-lora` models; `logit_bias` is OpenAI's; `min_p`, `stop_token_ids`, `ignore_eos`
and `priority` are what vLLM's users send.
"""

from typing import Annotated, Any, Final, get_type_hints

import msgspec

from runtime.protocol import MAX_PRIORITY

# A bound for whole numbers without one of their own: larger than any context window, small enough for every encoding.
MAX_WHOLE: Final = 2**31 - 1

MAX_SEED: Final = 9_999_999_999
# OpenAI's own clients send 0 and negative seeds too; the runtime takes the lower 63 bits.
ANY_SEED: Final = (-(2**63), 2**63 - 1)
# OpenAI and Anthropic let top_p be 0; Anthropic knows no most of top_k, and 0 is none.
ANY_TOP_P: Final = (0.0, 1.0)
ANY_TOP_K: Final = (0, MAX_WHOLE)
MAX_CHOICES: Final = 8
MAX_TOP_LOGPROBS: Final = 20
MAX_STOPS: Final = 4
MAX_STOP_CHARS: Final = 256
MAX_BIASES: Final = 300
MAX_STOP_IDS: Final = 64
MAX_BATCH: Final = 10_000

Scalar = str | int | float | bool | None


def said(description: str, **schema: Any) -> msgspec.Meta:
    """What a field's type does not tell by itself: its sentence and, where it is wider than the field, its schema."""
    return msgspec.Meta(description=description, extra_json_schema=schema or None)


def ranged(kind: str, low: float, high: float, description: str, **schema: Any) -> msgspec.Meta:
    """A number ("integer" or "number") between two bounds, both allowed. `bounds` reads them back."""
    return said(description, type=kind, minimum=low, maximum=high, **schema)


def _boolean(description: str, default: bool = False) -> msgspec.Meta:
    return said(description, type="boolean", default=default)


class Part(msgspec.Struct):
    """One part of a message's content; only text parts can be answered."""

    type: str = "text"
    text: str | None = None


class CallBody(msgspec.Struct):
    """What a model called; the arguments are JSON, or JSON as text."""

    name: str | None = None
    arguments: msgspec.Raw = msgspec.Raw(b"null")


class TurnCall(CallBody):
    """One call of an assistant's turn: in OpenAI's shape, with a `function`, or flat."""

    id: str | None = None
    function: CallBody | None = None


class Turn(msgspec.Struct):
    """One message as it came."""

    role: Annotated[str, said("Who speaks.", enum=["system", "developer", "user", "assistant", "tool"])]
    content: Annotated[str | list[Part] | None, said("Text or text parts; null beside calls.")] = None
    tool_calls: Annotated[list[TurnCall] | None, said("What the assistant called, also flat.", maxItems=128)] = None
    tool_call_id: Annotated[str | None, said("Which call a tool's turn answers.")] = None
    name: str | None = None


class Options(msgspec.Struct):
    """How the request is to be served."""

    reject_if_busy: Annotated[Scalar, _boolean("429 at once instead of a wait in the queue.")] = msgspec.field(
        name="rejectIfBusy", default=None
    )


class StreamOptions(msgspec.Struct):
    """What a stream tells beside the answer."""

    include_usage: Annotated[Scalar, _boolean("One more event with `usage` before the end.")] = None


# Of every dialect but the native one.
SEED: Final = ranged("integer", *ANY_SEED, "Makes sampling repeatable.")
TOP_P: Final = ranged("number", *ANY_TOP_P, "Nucleus sampling; 0 is greedy.")


# What is absent is this very object: who looks for it need not decode.
NULL: Final = msgspec.Raw(b"null")


class Settings(msgspec.Struct):
    """What every dialect has in common; `Raw` marks those that are built later, if at all."""

    model: Annotated[str | None, said("A model of the catalogue.", type="string")] = None
    lora: Annotated[str | None, said("Name or id of one of the account's finetunes, or a public one.")] = None
    stream: Annotated[Scalar, _boolean("Answer as server-sent events.")] = None
    temperature: Annotated[Scalar, ranged("number", 0, 5, "0 is greedy.", default=0.6)] = None
    top_p: Annotated[Scalar, ranged("number", 0.001, 1, "Nucleus sampling.")] = None
    top_k: Annotated[Scalar, ranged("integer", 1, 50, "Sample among the k best tokens.")] = None
    seed: Annotated[Scalar, ranged("integer", 1, MAX_SEED, "Makes sampling repeatable.")] = None
    repetition_penalty: Annotated[Scalar, ranged("number", 0, 2, "Penalty on repeated tokens.")] = None
    frequency_penalty: Annotated[Scalar, ranged("number", -2, 2, "Penalty by frequency.")] = None
    presence_penalty: Annotated[Scalar, ranged("number", -2, 2, "Penalty on presence.")] = None
    options: Options | None = None
    min_p: Annotated[Scalar, ranged("number", 0, 1, "Least share of the best token's chance.")] = None
    ignore_eos: Annotated[Scalar, _boolean("The model's own end does not end the answer.")] = None
    priority: Annotated[
        Scalar,
        ranged("integer", -MAX_PRIORITY, MAX_PRIORITY, "Among the account's own requests lower is earlier.", default=0),
    ] = None
    service_tier: Annotated[msgspec.Raw, said('"priority" and "flex" are priorities; others say nothing.')] = NULL
    stop_token_ids: Annotated[
        msgspec.Raw,
        said(
            "Token ids that end the answer.", type="array", maxItems=MAX_STOP_IDS,
            items={"type": "integer", "minimum": 0, "maximum": MAX_WHOLE},
        ),
    ] = NULL  # fmt: skip
    logit_bias: Annotated[
        msgspec.Raw,
        said(
            "What is added to the logits of token ids.", type="object", maxProperties=MAX_BIASES,
            additionalProperties={"type": "number", "minimum": -100, "maximum": 100},
        ),
    ] = NULL  # fmt: skip
    tools: Annotated[
        msgspec.Raw,
        said(
            'Functions that the model may call, flat or as {"type": "function", "function": {...}}.',
            type="array", maxItems=128, items={"type": "object"},
        ),
    ] = NULL  # fmt: skip
    tool_choice: Annotated[
        msgspec.Raw,
        said(
            'auto, none, required, or {"type": "function", "function": {"name": ...}}.',
            type=["string", "object"], default="auto",
        ),
    ] = NULL  # fmt: skip
    parallel_tool_calls: Annotated[Scalar, _boolean("Whether there may be several calls.", True)] = None


class Body(Settings):
    """The native dialect, and what the others are turned into."""

    prompt: Annotated[str | None, said("Text to answer, or with `raw` to continue.", type="string", minLength=1)] = None
    messages: Annotated[list[Turn] | None, said("The conversation so far.", minItems=1)] = None
    raw: Annotated[Scalar, _boolean("Send the prompt as it is, without a chat template.")] = None
    max_tokens: Annotated[Scalar, ranged("integer", 1, MAX_WHOLE, "The most tokens to generate.", default=256)] = None
    max_completion_tokens: Annotated[Scalar, ranged("integer", 1, MAX_WHOLE, "Goes before `max_tokens`.")] = None
    stop: Annotated[
        str | list[str] | None,
        said(f"The answer ends before any of these: up to {MAX_STOPS}, of 1 to {MAX_STOP_CHARS} characters."),
    ] = None
    stream_options: StreamOptions | None = None
    n: Annotated[Scalar, ranged("integer", 1, MAX_CHOICES, "So many answers.", default=1)] = None
    best_of: Annotated[Scalar, ranged("integer", 1, 1, "Only 1.")] = None
    logprobs: Annotated[Scalar, _boolean("Tell the log-probability of each token.")] = None
    top_logprobs: Annotated[Scalar, ranged("integer", 0, MAX_TOP_LOGPROBS, "And of so many others.")] = None
    functions: Annotated[msgspec.Raw, said("Legacy; refused unless empty.")] = NULL
    function_call: Annotated[msgspec.Raw, said("Legacy; refused unless empty.")] = NULL
    response_format: Annotated[
        msgspec.Raw,
        said(
            "The answer is JSON, by a schema if one is given.", type="object",
            properties={"type": {"type": "string", "enum": ["text", "json_object", "json_schema"]}, "json_schema": {}},
        ),
    ] = NULL  # fmt: skip
    requests: Annotated[
        msgspec.Raw,
        said(
            "A batch; only with ?queueRequest=true.", type="array", minItems=1, maxItems=MAX_BATCH,
            items={"type": "object"},
        ),
    ] = NULL  # fmt: skip
    request_id: Annotated[str | None, said("A batch to ask about; only with ?queueRequest=true.")] = None


class ChatBody(Body):
    """The OpenAI chat dialect, whose seeds are any whole numbers, and whose top_p may be 0."""

    seed: Annotated[Scalar, SEED] = None
    top_p: Annotated[Scalar, TOP_P] = None


def read_bounds(body: type[msgspec.Struct]) -> dict[str, tuple[float, float]]:
    """Lowest and highest value of each numeric field, out of its type."""
    schemas = {name: _schema(hint) for name, hint in get_type_hints(body, include_extras=True).items()}
    return {name: (schema["minimum"], schema["maximum"]) for name, schema in schemas.items() if "minimum" in schema}


def _schema(hint: Any) -> dict[str, Any]:
    return next(
        (m.extra_json_schema or {} for m in getattr(hint, "__metadata__", ()) if isinstance(m, msgspec.Meta)), {}
    )
