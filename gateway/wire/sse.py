"""Server-sent events as Workers AI and OpenAI clients read them: `data: {json}`, a blank line, at last `[DONE]`."""

from collections.abc import Mapping
from typing import Any, Final

import msgspec

CONTENT_TYPE: Final = "text/event-stream; charset=utf-8"
DONE: Final = b"data: [DONE]\n\n"

_encode = msgspec.json.Encoder().encode


def event(payload: Mapping[str, Any]) -> bytes:
    """One event. JSON has no raw line breaks, so one `data:` line is always enough."""
    return b"data: " + _encode(payload) + b"\n\n"


def named_event(name: str, payload: Mapping[str, Any]) -> bytes:
    """One event with its name in front, as the Anthropic and Responses dialects have it."""
    return b"event: " + name.encode() + b"\n" + event(payload)
