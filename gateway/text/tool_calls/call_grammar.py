"""Lark rules for answers that must be calls: llguidance lets the model write nothing else.

Every family writes a call as an object of a name and arguments; what stands around it is the family's own affair. The
separators are those of Python's json, in which models were trained; white space beyond them would let a model that
does not know what to say go on for ever. Of a schema, what the library knows is enforced; the rest is the caller's to
check, as for a call that was not forced: schemas of tools come from generators that write more than is needed.
"""

import json
from typing import Any, Final

import msgspec

from gateway.messages import Tool, ToolChoice

MAX_CALLS: Final = 8  # of one answer that must call
_GUIDANCE: Final = {
    "whitespace_flexible": False, "item_separator": ", ", "key_separator": ": ", "lenient": True,
}  # fmt: skip
_FLEXIBLE: Final = {"whitespace_pattern": r"[\x20\x0A\x09]{1,32}"}  # as for answers that are JSON without tools
# Beside these, more keys than `properties` names may be meant.
_OPEN: Final = frozenset({
    "$ref", "allOf", "anyOf", "oneOf", "not", "if", "patternProperties", "propertyNames", "minProperties",
    "additionalProperties", "unevaluatedProperties", "dependentSchemas",
})  # fmt: skip


def call_rules(tools: tuple[Tool, ...], choice: ToolChoice, arguments_key: str) -> str:
    """The rule `call`: one call of any of the tools, or of the one that is chosen by name."""
    allowed = [tool for tool in tools if choice.name in (None, tool.name)]
    rules = ["call: " + " | ".join(f"call_{index}" for index in range(len(allowed)))]
    for index, tool in enumerate(allowed):
        head = f'{{"name": {json.dumps(tool.name)}, "{arguments_key}": '
        rules.append(f'call_{index}: {literal(head)} arguments_{index} "}}"')
        rules.append(f"arguments_{index}: %json {json.dumps(_schema(tool.parameters), ensure_ascii=False)}")
    return "\n".join(rules)


def repeated(choice: ToolChoice) -> str:
    """How often more calls may follow the first: `{0,…}`, or nothing when there may be one only."""
    return f"{{0,{MAX_CALLS - 1}}}" if choice.parallel and choice.name is None else ""


def schema_rule(schema: str) -> str:
    """JSON that a schema (text) accepts; what the schema says to the library itself does not count."""
    return "%json " + json.dumps({**msgspec.json.decode(schema), "x-guidance": _FLEXIBLE}, ensure_ascii=False)


def literal(text: str) -> str:
    """A text as Lark quotes it."""
    return json.dumps(text)


def _schema(text: str) -> dict[str, Any]:
    """The parameters' schema as that of an object, without keys that it does not name."""
    schema: dict[str, Any] = msgspec.json.decode(text)
    closed = {"additionalProperties": False} if not _OPEN & schema.keys() else {}
    return {**schema, "type": "object", **closed, "x-guidance": _GUIDANCE}
