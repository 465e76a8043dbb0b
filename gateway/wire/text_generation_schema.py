"""JSON Schemas of native text generation, as `/ai/models/schema` shows them: the type that parses it, in two forms."""

from typing import Any, Final

from gateway.openapi.schema import Schemas
from gateway.wire.body import Body

# Of the OpenAI dialect, of batches, or refused here.
_NOT_NATIVE: Final = frozenset({
    "model", "stream_options", "n", "best_of", "logprobs", "top_logprobs", "functions", "function_call", "requests",
    "request_id", "max_completion_tokens", "service_tier",
})  # fmt: skip
_WITH_MESSAGES_ONLY: Final = frozenset({"messages", "tools", "tool_choice", "parallel_tool_calls"})


def _form(title: str, required: str, without: frozenset[str]) -> dict[str, Any]:
    schema = Schemas(inline=True).request(Body, without=_NOT_NATIVE | without)
    return {"title": title, "type": "object", "properties": schema["properties"], "required": [required]}


INPUT_SCHEMA: Final[dict[str, Any]] = {
    "type": "object",
    "oneOf": [
        _form("Prompt", "prompt", _WITH_MESSAGES_ONLY),
        _form("Messages", "messages", frozenset({"prompt"})),
    ],
}
_CALL: Final[dict[str, Any]] = {
    "type": "object",
    "properties": {"name": {"type": "string"}, "arguments": {"type": "object"}},
    "required": ["name", "arguments"],
}
OUTPUT_SCHEMA: Final[dict[str, Any]] = {
    "oneOf": [
        {
            "type": "object",
            "contentType": "application/json",
            "properties": {
                "response": {"description": "The text; in JSON mode the value itself."},
                "tool_calls": {"type": "array", "items": _CALL, "description": "What the model asks to be called."},
                "usage": {
                    "type": "object",
                    "properties": {
                        "prompt_tokens": {"type": "number"},
                        "completion_tokens": {"type": "number"},
                        "total_tokens": {"type": "number"},
                    },
                },
            },
            "required": ["response"],
        },
        {"type": "string", "contentType": "text/event-stream", "format": "binary"},
    ]
}
