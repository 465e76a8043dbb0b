"""`response_format`, for both dialects: what an answer must look like, as the text of a JSON schema.

    {"type": "text"}                                              nothing
    {"type": "json_object"}                                       any JSON object
    {"type": "json_schema", "json_schema": {…}}                   the schema itself, as native callers send it
    {"type": "json_schema", "json_schema": {"name", "schema"}}    the schema in OpenAI's wrapping; `strict` is always so

Only the shape is looked at here. Whether the schema can be enforced is found where the model is.
"""

from typing import Any, Final

import msgspec

from gateway.wire import json_depth
from gateway.wire.body import NULL, Body
from gateway.wire.chat_body import bad

MAX_BYTES: Final = 64 * 1024
_NAME: Final = "response_format"
_ANY_OBJECT: Final[dict[str, Any]] = {"type": "object"}
_WRAPPING: Final = frozenset({"name", "description", "schema", "strict"})


def json_schema(body: Body) -> str | None:
    """None when the answer may be any text. Raises BadInput."""
    if body.response_format is NULL:
        return None
    if len(memoryview(body.response_format)) > MAX_BYTES:
        bad(f"'{_NAME}' may have at most {MAX_BYTES} bytes", _NAME)
    try:
        wanted = msgspec.json.decode(body.response_format)
    except (msgspec.DecodeError, UnicodeError, RecursionError) as error:
        bad(f"'{_NAME}' is not valid JSON: {error}", _NAME)
    if wanted is None:
        return None
    kind = wanted.get("type") if isinstance(wanted, dict) else None
    if kind == "text":
        return None
    if kind not in ("json_object", "json_schema"):
        bad(f'\'{_NAME}\' must be an object with the type "text", "json_object" or "json_schema"', _NAME)
    schema = _unwrapped(wanted.get("json_schema"))
    if schema is None and kind == "json_object":
        schema = _ANY_OBJECT
    if not isinstance(schema, dict):
        bad(f"'{_NAME}.json_schema' must be a JSON schema, or an object with 'name' and 'schema'", _NAME)
    if json_depth.exceeds(schema):
        bad(f"'{_NAME}.json_schema' may be nested at most {json_depth.MAX_DEPTH} deep", _NAME)
    return msgspec.json.encode(schema).decode()


def _unwrapped(value: Any) -> Any:
    """A schema may have a property list of its own that is called `schema`, but then it says so below `properties`."""
    if isinstance(value, dict) and "type" not in value:
        if isinstance(value.get("schema"), dict):
            return value["schema"]
        if "name" in value and value.keys() <= _WRAPPING:
            return False
    return value
