"""Logs as training data: one finished exchange -> one OpenAI chat JSONL line, or None when it teaches nothing.

Pure functions over recorded bytes, whichever dialect and whether streamed or not. The turns are those of the request
(`messages`, or `prompt` as one user turn) and the answer as the last, assistant turn. An exchange is left out when a
body is not readable, when the answer is empty, or when the stream has no end; one cut at max_tokens is kept. Which
logs get here at all (finished ones) is decided by `log_store.py`.
"""

from collections.abc import Iterator
from typing import Any, Final, Literal, get_args

import msgspec

from gateway.errors import InvalidRequest
from gateway.wire import chat_body
from gateway.wire.turns import conversation

ExportFormat = Literal["openai_chat"]
EXPORT_FORMATS: Final = get_args(ExportFormat)


def chat_line(request: bytes, response: bytes, *, streamed: bool) -> bytes | None:
    """`{"messages": [{"role", "content"}, ...]}` with its newline, or None."""
    turns = _turns(request)
    answer = _streamed_answer(response) if streamed else _answer(_json(response))
    if turns is None or not answer:
        return None
    turns.append({"role": "assistant", "content": answer})
    return msgspec.json.encode({"messages": turns}) + b"\n"


def _turns(request: bytes) -> list[dict[str, str]] | None:
    """The conversation, read exactly as the gateway read it when it answered."""
    try:
        prompt, messages = conversation(chat_body.decode(request))
    except InvalidRequest:
        return None
    if messages is None:
        return [{"role": "user", "content": prompt or ""}]
    return [{"role": message.role, "content": message.content} for message in messages]


def _answer(response: Any) -> str | None:
    """The text of a whole reply: native (in its envelope) or OpenAI."""
    if not isinstance(response, dict):
        return None
    result = response["result"] if isinstance(response.get("result"), dict) else response
    said = result.get("response")
    if isinstance(said, str):
        return said
    if isinstance(said, dict | list):  # JSON mode answers with a parsed value
        return msgspec.json.encode(said).decode()
    message = _first_choice(result).get("message")
    content = message.get("content") if isinstance(message, dict) else None
    return content if isinstance(content, str) else None


def _streamed_answer(body: bytes) -> str | None:
    """The text of a recorded event stream; None when it has no end or an event that is not ours."""
    parts: list[str] = []
    for data in _events(body):
        if data.strip() == b"[DONE]":
            return "".join(parts)
        event = _json(data)
        if not isinstance(event, dict) or event.get("errors") or event.get("error"):
            return None
        delta = _first_choice(event).get("delta")
        said = delta.get("content") if isinstance(delta, dict) else event.get("response")
        if isinstance(said, str):
            parts.append(said)
    return None


def _events(body: bytes) -> Iterator[bytes]:
    """The data of each server-sent event."""
    for event in body.replace(b"\r\n", b"\n").replace(b"\r", b"\n").split(b"\n\n"):
        lines = [line[5:].removeprefix(b" ") for line in event.split(b"\n") if line.startswith(b"data:")]
        if lines:
            yield b"\n".join(lines)


def _first_choice(result: dict[str, Any]) -> dict[str, Any]:
    """The choice at index 0; an event may be about another one."""
    choices = result.get("choices")
    if not isinstance(choices, list):
        return {}
    return next((one for one in choices if isinstance(one, dict) and one.get("index", 0) == 0), {})


def _json(data: bytes) -> Any:
    try:
        return msgspec.json.decode(data)
    except (msgspec.DecodeError, RecursionError):
        return None
