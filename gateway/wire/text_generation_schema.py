"""JSON Schemas of native text generation, as `/ai/models/schema` shows them: the ranges of wire-contract 3.2."""

from typing import Any, Final

_SETTINGS: Final[dict[str, Any]] = {
    "lora": {"type": "string", "description": "Name or id of one of the account's finetunes."},
    "raw": {"type": "boolean", "default": False, "description": "Send the prompt as it is, without a chat template."},
    "stream": {"type": "boolean", "default": False, "description": "Answer as server-sent events."},
    "max_tokens": {"type": "integer", "default": 256, "description": "The most tokens to generate."},
    "temperature": {"type": "number", "default": 0.6, "minimum": 0, "maximum": 5, "description": "0 is greedy."},
    "top_p": {"type": "number", "minimum": 0.001, "maximum": 1, "description": "Nucleus sampling."},
    "top_k": {"type": "integer", "minimum": 1, "maximum": 50, "description": "Sample among the k best tokens."},
    "seed": {"type": "integer", "minimum": 1, "maximum": 9999999999, "description": "Makes sampling repeatable."},
    "repetition_penalty": {"type": "number", "minimum": 0, "maximum": 2, "description": "Penalty on repeated tokens."},
    "frequency_penalty": {"type": "number", "minimum": -2, "maximum": 2, "description": "Penalty by frequency."},
    "presence_penalty": {"type": "number", "minimum": -2, "maximum": 2, "description": "Penalty on presence."},
    "min_p": {"type": "number", "minimum": 0, "maximum": 1, "description": "Least share of the best token's chance."},
    "logit_bias": {
        "type": "object",
        "additionalProperties": {"type": "number", "minimum": -100, "maximum": 100},
        "maxProperties": 300,
        "description": "What is added to the logits of token ids.",
    },
    "stop_token_ids": {
        "type": "array",
        "items": {"type": "integer", "minimum": 0},
        "maxItems": 64,
        "description": "Token ids that end the answer.",
    },
    "priority": {
        "type": "integer",
        "default": 0,
        "minimum": -100,
        "maximum": 100,
        "description": "Among the account's own requests a lower one is served earlier.",
    },
    "ignore_eos": {"type": "boolean", "default": False, "description": "The model's own end does not end the answer."},
    "response_format": {
        "type": "object",
        "properties": {"type": {"type": "string", "enum": ["text", "json_object", "json_schema"]}, "json_schema": {}},
        "description": "The answer is JSON, by a schema if one is given.",
    },
}
_CALL: Final[dict[str, Any]] = {
    "type": "object",
    "properties": {"name": {"type": "string"}, "arguments": {"type": "object"}},
    "required": ["name", "arguments"],
}
_MESSAGE: Final[dict[str, Any]] = {
    "type": "object",
    "properties": {
        "role": {"type": "string", "enum": ["system", "developer", "user", "assistant", "tool"]},
        "content": {"type": ["string", "array", "null"], "description": "May be null beside tool_calls."},
        "tool_calls": {"type": "array", "maxItems": 128, "description": "What the assistant called, also flat."},
        "tool_call_id": {"type": "string", "description": "Which call a tool's turn answers."},
        "name": {"type": "string"},
    },
    "required": ["role"],
}
_TOOLS: Final[dict[str, Any]] = {
    "tools": {
        "type": "array",
        "maxItems": 128,
        "items": {
            "type": "object",
            "properties": {
                "name": {"type": "string", "pattern": "^[a-zA-Z0-9_.-]{1,64}$"},
                "description": {"type": "string"},
                "parameters": {"type": "object", "description": "A JSON schema."},
            },
        },
        "description": 'Functions that the model may call, flat or as {"type": "function", "function": {...}}.',
    },
    "tool_choice": {
        "type": ["string", "object"],
        "default": "auto",
        "description": 'auto, none, required, or {"type": "function", "function": {"name": ...}}.',
    },
    "parallel_tool_calls": {"type": "boolean", "default": True, "description": "Whether there may be several calls."},
}

INPUT_SCHEMA: Final[dict[str, Any]] = {
    "type": "object",
    "oneOf": [
        {
            "title": "Prompt",
            "properties": {"prompt": {"type": "string", "minLength": 1}, **_SETTINGS},
            "required": ["prompt"],
        },
        {
            "title": "Messages",
            "properties": {"messages": {"type": "array", "items": _MESSAGE}, **_SETTINGS, **_TOOLS},
            "required": ["messages"],
        },
    ],
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
