"""Messages and tools as chat templates take them: plain dictionaries in OpenAI's shape, arguments as objects.

Every text that a caller wrote goes through `mask`: contents, names, ids, and all that is inside schemas and arguments.
"""

from collections.abc import Callable, Iterable
from typing import Any

import msgspec

from gateway.messages import Message, Tool, ToolCall
from gateway.text.guard import Guard


def turns(
    messages: Iterable[Message], guard: Guard, call_id: Callable[[str], str] = lambda said: said
) -> list[dict[str, Any]]:
    """A turn has the keys that its message has, so that templates can ask whether they are there.

    call_id: an id as the base's format has ids.
    """
    made = []
    for message in messages:
        turn: dict[str, Any] = {"role": message.role, "content": guard.mask(message.content)}
        if message.tool_calls:
            turn["tool_calls"] = [_call(call, guard, call_id) for call in message.tool_calls]
        if message.tool_call_id is not None:
            turn["tool_call_id"] = guard.mask(call_id(message.tool_call_id))
        if message.name is not None:
            turn["name"] = guard.mask(message.name)
        made.append(turn)
    return made


def schemas(tools: Iterable[Tool], guard: Guard) -> list[dict[str, Any]]:
    """Name, description and parameters in this order, whatever the caller's: the one in which models met them."""
    made = []
    for tool in tools:
        function: dict[str, Any] = {"name": guard.mask(tool.name)}
        if tool.description:
            function["description"] = guard.mask(tool.description)
        function["parameters"] = guard.mask_all(msgspec.json.decode(tool.parameters))
        made.append({"type": "function", "function": function})
    return made


def _call(call: ToolCall, guard: Guard, call_id: Callable[[str], str]) -> dict[str, Any]:
    arguments = guard.mask_all(msgspec.json.decode(call.arguments))
    function = {"name": guard.mask(call.name), "arguments": arguments}
    return {"id": guard.mask(call_id(call.id)), "type": "function", "function": function}
