"""Logs as training data: one finished exchange -> one OpenAI chat JSONL line, or None when it teaches nothing.

Pure functions over recorded bytes, whichever dialect and whether streamed or not. The turns are those of the request
(`messages`, or `prompt` as one user turn) and the answer as the last, assistant turn (`said.py`), with the tools that
the model was shown beside them. Which dialect a request was in is told by the path that it came on. Embeddings and
rankings are no conversations and give no line. An exchange is left out when a body is not readable, when the answer is
empty or a half call, or when the stream has no end; one cut at max_tokens is kept. Which logs get here at all (finished
ones) is decided by `log_store.py`.
"""

from collections.abc import Callable, Mapping
from typing import Any, Final, Literal, get_args

import msgspec

from gateway.errors import InvalidRequest
from gateway.logs.said import read_stream, read_whole
from gateway.messages import ChatRequest, Message, Tool, ToolChoice
from gateway.wire import anthropic_body, chat_body, completions, responses_body, workers_ai
from gateway.wire.tools import tools
from gateway.wire.turns import conversation

ExportFormat = Literal["openai_chat"]
EXPORT_FORMATS: Final = get_args(ExportFormat)
_Asked = tuple[str | None, tuple[Message, ...] | None, tuple[Tool, ...], ToolChoice]


def chat_line(request: bytes, response: bytes, *, streamed: bool, path: str = "") -> bytes | None:
    """`{"messages": [{"role", "content"}, ...], "tools": [...]}` with its newline, or None. `path`: below the account,
    as the log has it."""
    line = _asked(request, path.rstrip("/"))
    said = read_stream(response) if streamed else read_whole(response)
    turn = said.turn() if said else None
    if line is None or turn is None:
        return None
    line["messages"].append(turn)
    return msgspec.json.encode(line) + b"\n"


def _asked(request: bytes, path: str) -> dict[str, Any] | None:
    """The conversation and its tools, read exactly as the gateway read them when it answered."""
    try:
        prompt, messages, offered, choice = _READERS.get(path, _native)(request)
    except InvalidRequest:
        return None
    line: dict[str, Any] = {"messages": [_turn(message) for message in messages or (Message("user", prompt or ""),)]}
    if offered and choice.mode != "none":
        line["tools"] = [_tool(tool) for tool in offered]
    return line


def _native(request: bytes) -> _Asked:
    """The native dialect or OpenAI's chat: their conversations are written in the same way."""
    body = chat_body.decode(request)
    prompt, messages = conversation(body)
    return prompt, messages, *tools(body, has_messages=messages is not None, raw=chat_body.flag("raw", body.raw))


def _parsed(asked: ChatRequest) -> _Asked:
    return asked.prompt, asked.messages, asked.tools, asked.tool_choice


_READERS: Final[Mapping[str, Callable[[bytes], _Asked]]] = {
    "ai/run": lambda request: _native(workers_ai.unwrap(request)[1]),
    "ai/v1/completions": lambda request: _parsed(completions.parse(request)),
    "ai/v1/messages": lambda request: _parsed(anthropic_body.parse(request)),
    "ai/v1/responses": lambda request: _parsed(responses_body.parse(request)[0]),
}


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
