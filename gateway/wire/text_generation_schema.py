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
_MESSAGE: Final[dict[str, Any]] = {
    "type": "object",
    "properties": {"role": {"type": "string"}, "content": {"type": "string"}},
    "required": ["role", "content"],
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
            "properties": {"messages": {"type": "array", "items": _MESSAGE}, **_SETTINGS},
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
