"""`tools`, `tool_choice` and `parallel_tool_calls`, for both dialects.

A tool is `{"type": "function", "function": {…}}` or flat, `{"name", "description", "parameters"}`. `any` is what some
clients call `required`. Of `allowed_tools` the model is shown those alone, so it can call no other. The legacy
`functions` are refused: their answers have another shape.
"""

import re
from typing import Any, Final, Literal

import msgspec

from gateway.messages import Tool, ToolChoice
from gateway.wire import json_depth
from gateway.wire.body import NULL, Body
from gateway.wire.chat_body import bad, flag

MAX_TOOLS: Final = 128
MAX_BYTES: Final = 256 * 1024
NAME: Final = re.compile(r"[a-zA-Z0-9_.-]{1,64}")
_NO_PARAMETERS: Final = '{"type": "object", "properties": {}}'
_EMPTY: Final = frozenset({b"null", b"[]", b"{}", b"false", b'"none"', b'"auto"'})
_MODES: Final[dict[str, Literal["auto", "none", "required"]]] = {
    "auto": "auto", "none": "none", "required": "required", "any": "required",
}  # fmt: skip


class _Function(msgspec.Struct):
    name: str | None = None
    description: str | None = None
    parameters: msgspec.Raw = msgspec.Raw(b"null")


class _Tool(_Function):
    type: str | None = None
    function: _Function | None = None


class _Allowed(msgspec.Struct):
    mode: str = "auto"
    tools: "list[_Named]" = []


class _Named(_Allowed):
    name: str | None = None
    type: str = "function"
    function: "_Named | None" = None
    allowed_tools: _Allowed | None = None


_tools = msgspec.json.Decoder(list[_Tool] | None)
_choice: msgspec.json.Decoder[str | _Named | None] = msgspec.json.Decoder(str | _Named | None)


def tools(body: Body, *, has_messages: bool, raw: bool) -> tuple[tuple[Tool, ...], ToolChoice]:
    """What the model may call, and whether it must. Raises BadInput."""
    if all(raw is NULL for raw in (body.tools, body.tool_choice, body.functions, body.function_call)):
        return (), ToolChoice(parallel=flag("parallel_tool_calls", body.parallel_tool_calls, default=True))
    for name in ("functions", "function_call"):
        if bytes(getattr(body, name)).strip() not in _EMPTY:
            bad(f"'{name}' is not supported; send 'tools' and 'tool_choice'", name)
    offered = _offered(bytes(body.tools))
    wanted = _wanted(bytes(body.tool_choice))
    if isinstance(wanted, _Named) and wanted.type == "allowed_tools":
        allowed = wanted.allowed_tools or wanted
        offered, wanted = _allowed(offered, allowed.tools), allowed.mode
    choice = _chosen(wanted, flag("parallel_tool_calls", body.parallel_tool_calls, default=True))
    if choice.mode == "required" and not offered:
        bad("'tool_choice' asks for a call, but there are no 'tools'; send some", "tool_choice")
    if choice.name is not None and all(tool.name != choice.name for tool in offered):
        bad("'tool_choice' names a function that is not among 'tools'", "tool_choice")
    if offered and choice.mode != "none" and (raw or not has_messages):
        bad("'tools' need 'messages' without 'raw': the model's chat template shows them to it", "tools")
    return offered, choice


def _offered(body: bytes) -> tuple[Tool, ...]:
    if len(body) > MAX_BYTES:
        bad(f"'tools' may have at most {MAX_BYTES} bytes", "tools")
    try:
        wanted = _tools.decode(body) or []
    except (msgspec.DecodeError, UnicodeError, RecursionError) as error:
        bad(f"'tools' must be a list of functions: {error}", "tools")
    if len(wanted) > MAX_TOOLS:
        bad(f"'tools' may hold at most {MAX_TOOLS} functions", "tools")
    made = tuple(_tool(f"tools[{index}]", tool) for index, tool in enumerate(wanted))
    names = [tool.name for tool in made]
    if len(set(names)) < len(names):
        bad("'tools' has two functions of the same name; rename one", "tools")
    return made


def _tool(path: str, tool: _Tool) -> Tool:
    if tool.type not in (None, "function"):
        bad(f"'{path}.type' must be \"function\"", "tools")
    said = tool.function or tool
    if said.name is None or not NAME.fullmatch(said.name):
        bad(f"'{path}' must have a name of 1 to 64 letters, digits, '_', '-' and '.'", "tools")
    parameters: Any = None
    try:
        parameters = msgspec.json.decode(said.parameters)
    except (msgspec.DecodeError, UnicodeError, RecursionError):
        bad(f"'{path}.parameters' is not valid JSON", "tools")
    if parameters is not None and (not isinstance(parameters, dict) or json_depth.exceeds(parameters)):
        bad(
            f"'{path}.parameters' must be a JSON schema: an object, nested at most {json_depth.MAX_DEPTH} deep", "tools"
        )
    text = bytes(said.parameters).decode() if parameters else _NO_PARAMETERS
    return Tool(said.name, said.description or "", text)


def _wanted(body: bytes) -> "str | _Named | None":
    try:
        return _choice.decode(body)
    except (msgspec.DecodeError, UnicodeError, RecursionError):
        return ""


def _allowed(offered: tuple[Tool, ...], names: list[_Named]) -> tuple[Tool, ...]:
    """Those of `tools` that `tool_choice` lets the model call."""
    allowed = {(one.function or one).name for one in names}
    if not allowed or not allowed <= {tool.name for tool in offered}:
        bad("'tool_choice' allows a function that is not among 'tools', or none at all", "tool_choice")
    return tuple(tool for tool in offered if tool.name in allowed)


def _chosen(wanted: "str | _Named | None", parallel: bool) -> ToolChoice:
    if wanted is None:
        return ToolChoice(parallel=parallel)
    if isinstance(wanted, str):
        mode = _MODES.get(wanted)
    else:
        named = wanted.function or wanted
        if wanted.type == "function" and named.name:
            return ToolChoice("required", named.name, parallel)
        mode = _MODES.get(wanted.type)
    if mode is None:
        bad(
            "'tool_choice' must be \"auto\", \"none\", \"required\" or "
            '{"type": "function", "function": {"name": …}}', "tool_choice",
        )  # fmt: skip
    return ToolChoice(mode, None, parallel)
