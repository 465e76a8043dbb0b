"""The messages of a request, for both dialects: roles, text parts, the calls that a model made and their results.

Calls come in OpenAI's shape (`function` with arguments as JSON text) or flat, as the native route answers them
(`name` and `arguments`). Flat ones have no ids, and some chat templates want them: a call without one gets an id from
its place, and a result without one that of the first unanswered call of its name, or of any.
"""

from typing import Any, Final

import msgspec

from gateway.messages import Message, Role, ToolCall
from gateway.wire import json_depth
from gateway.wire.body import Body, Part, Turn, TurnCall
from gateway.wire.chat_body import bad

MAX_CALLS: Final = 128  # of one turn
MAX_WAITING: Final = 256  # for their results; of more, the first are taken for answered
_ROLES: Final[dict[str, Role]] = {
    "system": "system", "developer": "system", "user": "user", "assistant": "assistant", "tool": "tool",
}  # fmt: skip


def conversation(body: Body) -> tuple[str | None, tuple[Message, ...] | None]:
    """(prompt, messages), exactly one of them set. Raises BadInput."""
    if (body.prompt is None) == (body.messages is None):
        matches = "0 matches" if body.prompt is None else "2 matches"
        bad(f"oneOf at '/' not met, {matches}: send exactly one of 'prompt' and 'messages'", "prompt")
    if body.prompt is not None:
        if not body.prompt:
            bad("'prompt' is empty; it must have at least 1 character", "prompt")
        return body.prompt, None
    if not body.messages:
        bad("'messages' is empty; it must have at least 1 message", "messages")
    waiting: list[ToolCall] = []
    messages: list[Message] = []
    for index, turn in enumerate(body.messages):
        message = _message(index, turn, len(messages))
        if message.role == "assistant":
            waiting += message.tool_calls
            del waiting[:-MAX_WAITING]
        elif message.role == "tool":
            message = _answering(message, waiting)
        messages.append(message)
    return None, tuple(messages)


def _message(index: int, turn: Turn, place: int) -> Message:
    role = _ROLES.get(turn.role)
    if role is None:
        bad(f"'messages[{index}].role' must be one of system, user, assistant, tool", "messages")
    content = turn.content
    if isinstance(content, list):
        content = "".join(_part(index, part) for part in content)
    if content is None and role != "assistant":
        bad(f"'messages[{index}].content' must be a string or a list of text parts", "messages")
    if turn.tool_calls and role != "assistant":
        bad(f"'messages[{index}].tool_calls' may only stand in a turn of the assistant", "messages")
    if len(turn.tool_calls or ()) > MAX_CALLS:
        bad(f"'messages[{index}].tool_calls' may hold at most {MAX_CALLS} calls", "messages")
    calls = tuple(
        _call(f"messages[{index}].tool_calls[{number}]", call, f"c{place:05}{number:03}")
        for number, call in enumerate(turn.tool_calls or ())
    )
    return Message(role, content or "", calls, turn.tool_call_id or None, turn.name or None)


def _part(index: int, part: Part) -> str:
    if part.type != "text" or part.text is None:
        bad(f"'messages[{index}].content' may hold parts of type \"text\" only", "messages")
    return part.text


def _call(path: str, call: TurnCall, default_id: str) -> ToolCall:
    """`default_id` has nine letters and digits, which the strictest templates want."""
    said = call.function or call
    if not said.name:
        bad(f"'{path}' must have the name of a function", "messages")
    text = bytes(said.arguments)
    arguments = _decoded(text)
    if isinstance(arguments, str):
        text = arguments.strip().encode()
        arguments = _decoded(text)
    if text in (b"", b"null"):
        text, arguments = b"{}", {}
    if not isinstance(arguments, dict) or json_depth.exceeds(arguments):
        bad(f"'{path}': the arguments must be a JSON object, or such an object as text", "messages")
    return ToolCall(call.id or default_id, said.name, text.decode())


def _decoded(text: bytes) -> Any:
    try:
        return msgspec.json.decode(text)
    except (msgspec.DecodeError, UnicodeError, RecursionError):
        return None


def _answering(message: Message, waiting: list[ToolCall]) -> Message:
    """A result, with the id of the call that it answers; that call waits no longer."""
    if message.tool_call_id is not None:
        call = next((call for call in waiting if call.id == message.tool_call_id), None)
    else:
        call = next((call for call in waiting if call.name == message.name), waiting[0] if waiting else None)
    if call is None:
        return message
    waiting.remove(call)
    return msgspec.structs.replace(message, tool_call_id=call.id)
