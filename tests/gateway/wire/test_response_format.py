"""`response_format` in every spelling that clients send, in both dialects."""

import json
from typing import Any

import pytest

from gateway.errors import BadInput
from gateway.wire import openai, workers_ai

SCHEMA = {"type": "object", "properties": {"b": {"type": "integer"}, "a": {"type": "string"}}}


def asked(response_format: Any, dialect: str = "openai") -> str | None:
    body: dict[str, Any] = {"model": "m", "messages": [{"role": "user", "content": "x"}]}
    if response_format is not ...:
        body["response_format"] = response_format
    if dialect == "openai":
        return openai.parse(json.dumps(body).encode()).json_schema
    return workers_ai.parse(json.dumps(body).encode(), [], "m").json_schema


@pytest.mark.parametrize("dialect", ["openai", "workers_ai"])
@pytest.mark.parametrize(
    ("response_format", "schema"),
    [
        (..., None),
        (None, None),
        ({"type": "text"}, None),
        ({"type": "text", "json_schema": SCHEMA}, None),
        ({"type": "json_object"}, {"type": "object"}),
        ({"type": "json_object", "json_schema": SCHEMA}, SCHEMA),
        ({"type": "json_schema", "json_schema": SCHEMA}, SCHEMA),
        ({"type": "json_schema", "json_schema": {"title": "t", "description": "d", **SCHEMA}}, None),
        ({"type": "json_schema", "json_schema": {"name": "n", "strict": True, "schema": SCHEMA}}, SCHEMA),
        ({"type": "json_schema", "json_schema": {"name": "n", "schema": {"$ref": "#"}}}, {"$ref": "#"}),
        ({"type": "json_schema", "json_schema": {"name": "n", "type": "object"}}, {"name": "n", "type": "object"}),
        ({"type": "json_schema", "json_schema": {"type": "object", "schema": {}}}, {"type": "object", "schema": {}}),
        ({"type": "json_schema", "json_schema": {"anyOf": [{}, SCHEMA]}}, {"anyOf": [{}, SCHEMA]}),
    ],
)
def test_spellings(dialect: str, response_format: Any, schema: dict[str, Any] | None) -> None:
    found = asked(response_format, dialect)
    if schema is None and isinstance(response_format, dict) and response_format["type"] != "text":
        schema = response_format["json_schema"]
    assert (None if found is None else json.loads(found)) == schema


def test_the_order_of_properties_is_kept() -> None:
    """Answers have them in the schema's order."""
    found = asked({"type": "json_schema", "json_schema": SCHEMA})
    assert found is not None
    assert list(json.loads(found)["properties"]) == ["b", "a"]


def test_a_prompt_may_have_one_too() -> None:
    body = json.dumps({"prompt": "x", "raw": True, "response_format": {"type": "json_object"}}).encode()
    assert workers_ai.parse(body, [], "m").json_schema == '{"type":"object"}'


@pytest.mark.parametrize("value", [5, [], "json_object", {}, {"type": 5}, {"type": "grammar"}, {"type": None}])
def test_what_it_is_not(value: Any) -> None:
    with pytest.raises(BadInput, match="'response_format' must be an object with the type") as caught:
        asked(value)
    assert caught.value.param == "response_format"
