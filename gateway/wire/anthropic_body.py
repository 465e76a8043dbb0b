"""Anthropic's Messages dialect, the way in: `/ai/v1/messages`, text and tools.

    system, messages (text | blocks)  ->  messages; `tool_use` is a call, `tool_result` its answer
    tools {name, input_schema}        ->  tools {name, parameters}
    output_config.format              ->  response_format

One user turn may hold results and text: the results come first, as turns of the tool, then the text.
"""

from collections.abc import Iterable
from typing import Annotated, Any, Final

import msgspec

from gateway.messages import ChatRequest
from gateway.wire import chat_body
from gateway.wire.body import (
    ANY_TOP_K,
    MAX_WHOLE,
    NULL,
    SEED,
    TOP_P,
    CallBody,
    Part,
    Scalar,
    Settings,
    Turn,
    TurnCall,
    ranged,
    said,
)
from gateway.wire.chat_body import bad
from gateway.wire.chat_request import as_body, chat_request

_WHOLE: Final = (1, MAX_WHOLE)
_FORMAT: Final[dict[str, Any]] = {
    "type": "object",
    "properties": {"type": {"type": "string", "enum": ["json_schema"]}, "schema": {"type": "object"}},
    "required": ["type", "schema"],
}
_MODES: Final = {"auto": "auto", "any": "required", "none": "none"}
# Kept from an earlier answer of a reasoning model; nothing here can use it.
_PASSED_OVER: Final = frozenset({"thinking", "redacted_thinking"})


class Block(msgspec.Struct):
    """One block of a turn's content."""

    type: Annotated[str, said("text, tool_use, tool_result; thinking is passed over.")]
    text: str | None = None
    id: str | None = None
    name: str | None = None
    input: msgspec.Raw = NULL
    tool_use_id: str | None = None
    content: str | list[Part] | None = None


class MessageTurn(msgspec.Struct):
    """One turn."""

    role: Annotated[str, said("Who speaks.", enum=["user", "assistant"])]
    content: str | list[Block]


class Tool(msgspec.Struct):
    """A function that the model may call."""

    name: str
    description: str | None = None
    input_schema: msgspec.Raw = NULL
    type: str | None = None


class Choice(msgspec.Struct):
    """auto, any, none, or tool with its name."""

    type: Annotated[str, said("How the model chooses.", enum=["auto", "any", "none", "tool"])]
    name: str | None = None
    disable_parallel_tool_use: bool = False


class OutputConfig(msgspec.Struct):
    """What the answer must look like."""

    format: Annotated[msgspec.Raw, said("json_schema, with its `schema` beside the type.", **_FORMAT)] = NULL


class MessagesBody(Settings):
    """The fields that mean something here; others are skipped."""

    seed: Annotated[Scalar, SEED] = None
    top_p: Annotated[Scalar, TOP_P] = None
    top_k: Annotated[Scalar, ranged("integer", *ANY_TOP_K, "Sample among the k best tokens; 0: among all.")] = None
    messages: Annotated[list[MessageTurn] | None, said("The conversation so far.", minItems=1)] = None
    system: str | list[Part] | None = None
    max_tokens: Annotated[Scalar, ranged("integer", *_WHOLE, "The most tokens to generate.", default=256)] = None
    stop_sequences: Annotated[list[str] | None, said("The answer ends before any of these.", maxItems=4)] = None
    tools: Annotated[list[Tool] | None, said("Functions that the model may call.", maxItems=128)] = None  # type: ignore[assignment]  # another shape
    tool_choice: Choice | None = None  # type: ignore[assignment]  # another shape
    output_config: OutputConfig | None = None
    output_format: Annotated[msgspec.Raw, said("`output_config.format` by its older name.", **_FORMAT)] = NULL


_decoder: Final = msgspec.json.Decoder(MessagesBody)


def parse(body: bytes, query: Iterable[tuple[str, str]] = ()) -> ChatRequest:
    """Settings may also stand in the query string; the body wins. Raises BadInput, EmptyBody."""
    asked = chat_body.decode_as(_decoder, body)
    chat_body.merge_query(asked, query)
    model = chat_body.required_model(asked)
    if not asked.messages:
        bad("'messages' is missing or empty; send at least one message", "messages")
    fields = as_body(asked)
    fields.max_tokens = chat_body.whole("max_tokens", asked.max_tokens)
    fields.stop = asked.stop_sequences
    fields.messages = _turns(asked.system, asked.messages)
    fields.tools, fields.tool_choice = _tools(asked.tools), _choice(asked.tool_choice)
    fields.response_format = _format(asked)
    if asked.tool_choice is not None and asked.tool_choice.disable_parallel_tool_use:
        fields.parallel_tool_calls = False
    return chat_request(fields, model, "anthropic")


def _format(asked: MessagesBody) -> msgspec.Raw:
    """In the shape that every other dialect has; whether the schema can be kept to is found there."""
    name, raw = "output_format", asked.output_format
    if asked.output_config is not None and bytes(asked.output_config.format).strip() != b"null":
        name, raw = "output_config.format", asked.output_config.format
    wanted: Any
    try:
        wanted = msgspec.json.decode(raw)
    except (msgspec.DecodeError, UnicodeError, RecursionError) as error:
        bad(f"'{name}' is not valid JSON: {error}", name.split(".")[0])
    if wanted is None:
        return NULL
    schema = wanted.get("schema") if isinstance(wanted, dict) and wanted.get("type") == "json_schema" else None
    if not isinstance(schema, dict):
        bad(f"'{name}' must be an object with the type \"json_schema\" and a 'schema'", name.split(".")[0])
    return msgspec.Raw(msgspec.json.encode({"type": "json_schema", "json_schema": schema}))


def _turns(system: str | list[Part] | None, messages: list[MessageTurn]) -> list[Turn]:
    turns: list[Turn] = []
    if system:
        turns.append(Turn("system", _text("system", system)))
    for index, turn in enumerate(messages):
        if turn.role not in ("user", "assistant"):
            bad(f"'messages[{index}].role' must be user or assistant; 'system' is a field of its own", "messages")
        if isinstance(turn.content, str):
            turns.append(Turn(turn.role, turn.content))
        else:
            turns += _blocks(f"messages[{index}].content", turn.role, turn.content)
    return turns


def _blocks(path: str, role: str, blocks: list[Block]) -> list[Turn]:
    texts: list[str] = []
    calls: list[TurnCall] = []
    results: list[Turn] = []
    for index, block in enumerate(blocks):
        place = f"{path}[{index}]"
        if block.type == "text" and block.text is not None:
            texts.append(block.text)
        elif block.type == "tool_use" and role == "assistant":
            calls.append(TurnCall(id=block.id, function=CallBody(block.name, block.input)))
        elif block.type == "tool_result" and role == "user":
            results.append(Turn("tool", _text(f"{place}.content", block.content), tool_call_id=block.tool_use_id))
        elif block.type not in _PASSED_OVER:
            bad(f"'{place}' must be a text block, a tool_use of the assistant or a tool_result of the user", "messages")
    if role == "assistant":
        return [Turn("assistant", "".join(texts), calls or None)]
    return [*results, Turn("user", "".join(texts))] if texts or not results else results


def _text(path: str, content: str | list[Part] | None) -> str:
    if content is None or isinstance(content, str):
        return content or ""
    for part in content:
        if part.type != "text" or part.text is None:
            bad(f"'{path}' may hold blocks of type \"text\" only", path.split("[")[0])
    return "".join(part.text or "" for part in content)


def _tools(offered: list[Tool] | None) -> msgspec.Raw:
    """In the shape that every other dialect has; its own checks follow there."""
    if not offered:
        return NULL
    told: list[dict[str, Any]] = []
    for index, tool in enumerate(offered):
        if tool.type not in (None, "custom"):
            bad(f"'tools[{index}].type' must be \"custom\"; the provider's own tools are not here", "tools")
        told.append({"name": tool.name, "description": tool.description, "parameters": tool.input_schema})
    return msgspec.Raw(msgspec.json.encode(told))


def _choice(choice: Choice | None) -> msgspec.Raw:
    if choice is None:
        return NULL
    if choice.type == "tool" and choice.name:
        return msgspec.Raw(msgspec.json.encode({"type": "function", "function": {"name": choice.name}}))
    if choice.type not in _MODES:
        bad("'tool_choice.type' must be auto, any, none, or tool with a name", "tool_choice")
    return msgspec.Raw(msgspec.json.encode(_MODES[choice.type]))
