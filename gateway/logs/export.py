"""Logs as training data: one finished exchange -> one OpenAI chat JSONL line, or None when it teaches nothing.

Pure functions over recorded bytes, whichever dialect and whether streamed or not. The turns are those of the request
(`messages`, or `prompt` as one user turn) and the answer as the last, assistant turn (`said.py`), with the tools that
the model was shown beside them. An exchange is left out when a body is not readable, when the answer is empty or a half
call, or when the stream has no end; one cut at max_tokens is kept. Which logs get here at all (finished ones) is
decided by `log_store.py`.
"""

from typing import Any, Final, Literal, get_args

import msgspec

from gateway.errors import InvalidRequest
from gateway.logs.said import read_stream, read_whole
from gateway.messages import Message, Tool
from gateway.wire import chat_body
from gateway.wire.tools import tools
from gateway.wire.turns import conversation

ExportFormat = Literal["openai_chat"]
EXPORT_FORMATS: Final = get_args(ExportFormat)


def chat_line(request: bytes, response: bytes, *, streamed: bool) -> bytes | None:
    """`{"messages": [{"role", "content"}, ...], "tools": [...]}` with its newline, or None."""
    line = _asked(request)
    said = read_stream(response) if streamed else read_whole(response)
    turn = said.turn() if said else None
    if line is None or turn is None:
        return None
    line["messages"].append(turn)
    return msgspec.json.encode(line) + b"\n"


def _asked(request: bytes) -> dict[str, Any] | None:
    """The conversation and its tools, read exactly as the gateway read them when it answered."""
    try:
        body = chat_body.decode(request)
        prompt, messages = conversation(body)
        raw = chat_body.flag("raw", body.raw)
        offered, choice = tools(body, has_messages=messages is not None, raw=raw)
    except InvalidRequest:
        return None
    line: dict[str, Any] = {"messages": [_turn(message) for message in messages or (Message("user", prompt or ""),)]}
    if offered and choice.mode != "none":
        line["tools"] = [_tool(tool) for tool in offered]
    return line


def _turn(message: Message) -> dict[str, Any]:
    turn: dict[str, Any] = {"role": message.role, "content": message.content}
    if message.tool_calls:
        turn["tool_calls"] = [
            {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": call.arguments}}
            for call in message.tool_calls
        ]
    if message.tool_call_id is not None:
        turn["tool_call_id"] = message.tool_call_id
    if message.name is not None:
        turn["name"] = message.name
    return turn


def _tool(tool: Tool) -> dict[str, Any]:
    function: dict[str, Any] = {"name": tool.name}
    if tool.description:
        function["description"] = tool.description
    return {"type": "function", "function": {**function, "parameters": msgspec.Raw(tool.parameters.encode())}}
