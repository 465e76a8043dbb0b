"""The JSON body of a chat request, for both dialects: which fields are known, their types, ranges and defaults.

Shape: bytes > `Body` (typed by msgspec, unknown fields skipped without being built, null the same as absent) > parts of
a `ChatRequest`. A wrong value raises `BadInput` in the contract's words (`AiError: Bad input: Error: ...`) with a
sentence that says what is allowed. Ranges are those of the public schema of the `-lora` models.
"""

import re
from collections.abc import Iterable
from typing import Any, Final, NoReturn

import msgspec

from gateway.errors import BadInput, EmptyBody

# A bound for whole numbers without one of their own: larger than any context window, small enough for every encoding.
MAX_WHOLE: Final = 2**31 - 1

Scalar = str | int | float | bool | None
_NUMBER: Final = re.compile(r"-?[0-9]{1,20}(\.[0-9]{1,20})?")
_FLAGS: Final = {"true": True, "false": False, "1": True, "0": False}


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

    role: str
    content: str | list[Part] | None = None
    tool_calls: list[TurnCall] | None = None
    tool_call_id: str | None = None
    name: str | None = None


class _Options(msgspec.Struct):
    reject_if_busy: Scalar = msgspec.field(name="rejectIfBusy", default=None)


class _StreamOptions(msgspec.Struct):
    include_usage: Scalar = None


class Body(msgspec.Struct):
    """Every field that is known; `Raw` marks those that are built later, if at all."""

    model: str | None = None
    lora: str | None = None
    prompt: str | None = None
    messages: list[Turn] | None = None
    raw: Scalar = None
    stream: Scalar = None
    max_tokens: Scalar = None
    max_completion_tokens: Scalar = None
    temperature: Scalar = None
    top_p: Scalar = None
    top_k: Scalar = None
    seed: Scalar = None
    repetition_penalty: Scalar = None
    frequency_penalty: Scalar = None
    presence_penalty: Scalar = None
    stop: str | list[str] | None = None
    options: _Options | None = None
    stream_options: _StreamOptions | None = None
    n: Scalar = None
    best_of: Scalar = None
    logprobs: Scalar = None
    top_logprobs: Scalar = None
    min_p: Scalar = None
    ignore_eos: Scalar = None
    priority: Scalar = None
    service_tier: msgspec.Raw = msgspec.Raw(b"null")
    stop_token_ids: msgspec.Raw = msgspec.Raw(b"null")
    logit_bias: msgspec.Raw = msgspec.Raw(b"null")
    tools: msgspec.Raw = msgspec.Raw(b"null")
    tool_choice: msgspec.Raw = msgspec.Raw(b"null")
    parallel_tool_calls: Scalar = None
    functions: msgspec.Raw = msgspec.Raw(b"null")
    function_call: msgspec.Raw = msgspec.Raw(b"null")
    response_format: msgspec.Raw = msgspec.Raw(b"null")
    requests: msgspec.Raw = msgspec.Raw(b"null")


_TEXT_SETTINGS: Final = frozenset({"lora", "raw", "stream", "ignore_eos"})
_NUMBER_SETTINGS: Final = frozenset({
    "max_tokens", "temperature", "top_p", "top_k", "min_p", "seed", "priority",
    "repetition_penalty", "frequency_penalty", "presence_penalty",
})  # fmt: skip
_decoder = msgspec.json.Decoder(Body)


def bad(sentence: str, param: str | None = None) -> NoReturn:
    """Raises BadInput in the contract's words."""
    raise BadInput(f"AiError: Bad input: Error: {sentence}", param=param)


def decode(body: bytes) -> Body:
    """Raises EmptyBody; BadInput for what is not one JSON object of these types, or is nested absurdly deep."""
    if not body.strip():
        raise EmptyBody("the request has no body; send a JSON object with 'prompt' or 'messages'")
    try:
        return _decoder.decode(body)
    except msgspec.ValidationError as error:
        _explain(str(error))
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        bad(f"the body is not valid JSON: {error}")
    except RecursionError:
        bad("the body is nested too deeply")


def merge_query(body: Body, query: Iterable[tuple[str, str]]) -> None:
    """Settings in the query string count where the body does not have them; what is unknown there is ignored."""
    for name, text in query:
        if name in _TEXT_SETTINGS and getattr(body, name) is None:
            setattr(body, name, text)
        elif name in _NUMBER_SETTINGS and getattr(body, name) is None:
            setattr(body, name, msgspec.json.decode(text) if _NUMBER.fullmatch(text) and _canonical(text) else text)


def refuse_unsupported(body: Body) -> None:
    """What would change the answer if it were honoured is refused, not silently dropped. Raises BadInput."""
    if whole("best_of", body.best_of, 1, MAX_WHOLE) not in (None, 1):
        bad("'best_of' must be 1; send one request per answer", "best_of")
    if bytes(body.requests).strip() != b"null":
        bad("batches ('requests') are not supported; send one request per answer", "requests")


def flag(name: str, value: Scalar, default: bool = False) -> bool:
    """A boolean; the texts "true" and "false" (the contract's own examples send them) and 0 and 1 count too."""
    if value is None:
        return default
    known = _FLAGS.get(str(value).lower())
    if known is None:
        bad(f"'{name}' must be true or false", name)
    return known


def whole(name: str, value: Scalar, low: int, high: int) -> int | None:
    """A whole number in the range, or None when absent; 256.0 is whole. Raises BadInput."""
    if value is None:
        return None
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
        bad(f"'{name}' must be a whole number from {low} to {high}", name)
    return value


def number(name: str, value: Scalar, low: float, high: float) -> float | None:
    """A number in the range, or None when absent. Raises BadInput."""
    if value is None:
        return None
    if isinstance(value, bool | str) or not low <= value <= high:
        bad(f"'{name}' must be a number from {low:g} to {high:g}", name)
    return float(value)


def _canonical(text: str) -> bool:
    """Whether JSON reads this number: no leading zeros."""
    digits = text.lstrip("-")
    return not digits.startswith("0") or digits[1:2] in ("", ".")


def _explain(text: str) -> NoReturn:
    """msgspec's sentence with its path first."""
    reason, _, place = text.partition(" - at `")
    path = place.rstrip("`").removeprefix("$").lstrip(".")
    reason = (reason[:1].lower() + reason[1:]).replace("`", "")
    if not path:
        bad(f"the body must be one JSON object: {reason}")
    bad(f"'{path}': {reason}", path.split("[")[0].split(".")[0])


def usage_object(prompt_tokens: int, completion_tokens: int, cached_tokens: int) -> dict[str, Any]:
    """The `usage` of both dialects."""
    usage: dict[str, Any] = {
        "prompt_tokens": prompt_tokens,
        "completion_tokens": completion_tokens,
        "total_tokens": prompt_tokens + completion_tokens,
    }
    if cached_tokens:
        usage["prompt_tokens_details"] = {"cached_tokens": cached_tokens}
    return usage
