"""The JSON body of an inference request, for every dialect: how it is read, and what is said when it is wrong.

Shape: bytes > `Body` (typed by msgspec, unknown fields skipped without being built, null the same as absent) > parts of
a `ChatRequest`. A wrong value raises `BadInput` in the contract's words (`AiError: Bad input: Error: ...`) with a
sentence that says what is allowed. The fields and their bounds stand in `body.py`.
"""

import re
from collections.abc import Iterable
from typing import Any, Final, NoReturn, TypeVar

import msgspec

from gateway.errors import BadInput, EmptyBody
from gateway.wire.body import NULL, Body, Scalar, Settings, read_bounds

_BOUNDS: Final = read_bounds(Body)
_NUMBER: Final = re.compile(r"-?[0-9]{1,20}(\.[0-9]{1,20})?")
_FLAGS: Final = {"true": True, "false": False, "1": True, "0": False}
_TEXT_SETTINGS: Final = frozenset({"lora", "raw", "stream", "ignore_eos"})
_NUMBER_SETTINGS: Final = frozenset({
    "max_tokens", "temperature", "top_p", "top_k", "min_p", "seed", "priority",
    "repetition_penalty", "frequency_penalty", "presence_penalty",
})  # fmt: skip
QUERY_SETTINGS: Final = _TEXT_SETTINGS | _NUMBER_SETTINGS  # what may stand in the query string too
_decoder: Final = msgspec.json.Decoder(Body)
T = TypeVar("T")


def bad(sentence: str, param: str | None = None) -> NoReturn:
    """Raises BadInput in the contract's words."""
    raise BadInput(f"AiError: Bad input: Error: {sentence}", param=param)


def decode(body: bytes) -> Body:
    """The native body. Raises as `decode_as`."""
    return decode_as(_decoder, body)


def decode_as(decoder: msgspec.json.Decoder[T], body: bytes) -> T:
    """Raises EmptyBody; BadInput for what is not one JSON object of these types, or is nested absurdly deep."""
    if not body or body.isspace():
        raise EmptyBody("the request has no body; send a JSON object with 'prompt' or 'messages'")
    try:
        return decoder.decode(body)
    except msgspec.ValidationError as error:
        _explain(str(error))
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        bad(f"the body is not valid JSON: {error}")
    except RecursionError:
        bad("the body is nested too deeply")


def merge_query(body: Settings, query: Iterable[tuple[str, str]]) -> None:
    """Settings in the query string count where the body does not have them; what is unknown there is ignored."""
    for name, text in query:
        if name in _TEXT_SETTINGS and getattr(body, name, text) is None:
            setattr(body, name, text)
        elif name in _NUMBER_SETTINGS and getattr(body, name, text) is None:
            setattr(body, name, msgspec.json.decode(text) if _NUMBER.fullmatch(text) and _canonical(text) else text)


def refuse_unsupported(body: Body) -> None:
    """What would change the answer if it were honoured is refused, not silently dropped. Raises BadInput."""
    if body.best_of not in (None, 1):
        bad("'best_of' must be 1; send one request per answer", "best_of")
    if (body.requests is not NULL and bytes(body.requests).strip() != b"null") or body.request_id is not None:
        bad("a batch ('requests', 'request_id') needs ?queueRequest=true on /ai/run/{model}", "requests")


def required_model(body: Settings) -> str:
    """Raises BadInput when the body names none."""
    if not body.model:
        bad("'model' is missing; name a model of the catalogue", "model")
    return body.model


def flag(name: str, value: Scalar, default: bool = False) -> bool:
    """A boolean; the texts "true" and "false" (the contract's own examples send them) and 0 and 1 count too."""
    if value is None:
        return default
    known = _FLAGS.get(str(value).lower())
    if known is None:
        bad(f"'{name}' must be true or false", name)
    return known


def whole(name: str, value: Scalar, bounds: tuple[int, int] | None = None) -> int | None:
    """A whole number within the field's bounds, or those given; None when absent; 256.0 is whole. Raises BadInput."""
    if value is None:
        return None
    low, high = bounds or _BOUNDS[name]
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
        bad(f"'{name}' must be a whole number from {low} to {high}", name)
    return value


def number(name: str, value: Scalar, bounds: tuple[float, float] | None = None) -> float | None:
    """A number within the field's bounds, or those given; None when absent. Raises BadInput."""
    if value is None:
        return None
    low, high = bounds or _BOUNDS[name]
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
