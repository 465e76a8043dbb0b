"""OpenAI's Responses dialect, the way in: `/ai/v1/responses`, text and functions.

    instructions, input (text | items)  ->  messages
    text.format                         ->  response_format

Nothing is kept between calls: `store` is answered false, and what would need an earlier answer (`previous_response_id`,
`conversation`, `background`) is refused. Items of reasoning, which agents send back, are passed over.
"""

from collections.abc import Iterable
from typing import Annotated, Any, Final

import msgspec

from gateway.messages import ChatRequest
from gateway.wire import chat_body
from gateway.wire.body import (
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
_TEXT_PARTS: Final = frozenset({"input_text", "output_text", "text"})
MAX_METADATA_BYTES: Final = 32 * 1024


class Item(msgspec.Struct):
    """One item of `input`: a message, a call that the model made, or what came of it."""

    type: Annotated[str | None, said("message, function_call, function_call_output or reasoning.")] = None
    role: str | None = None
    content: str | list[Part] | None = None
    call_id: str | None = None
    name: str | None = None
    arguments: msgspec.Raw = NULL
    output: str | list[Part] | None = None


class Text(msgspec.Struct):
    """What the text of the answer must look like."""

    format: Annotated[
        msgspec.Raw,
        said(
            "text, json_object, or json_schema with its `schema` beside the type.",
            type="object",
            properties={"type": {"type": "string", "enum": ["text", "json_object", "json_schema"]}},
        ),
    ] = NULL


class ResponsesBody(Settings):
    """The fields that mean something here; others are skipped."""

    seed: Annotated[Scalar, SEED] = None
    top_p: Annotated[Scalar, TOP_P] = None
    input: Annotated[str | list[Item] | None, said("Text, or items of a conversation.")] = None
    instructions: Annotated[str | None, said("A system message before the input.")] = None
    max_output_tokens: Annotated[Scalar, ranged("integer", *_WHOLE, "The most tokens to generate.", default=256)] = None
    text: Text | None = None
    metadata: Annotated[msgspec.Raw, said("Told back as it is.", type="object")] = NULL
    previous_response_id: Annotated[str | None, said("Not supported; send the conversation.", maxLength=0)] = None
    background: Annotated[Scalar, said("Only false.", type="boolean", default=False)] = None


_decoder: Final = msgspec.json.Decoder(ResponsesBody)


def parse(body: bytes, query: Iterable[tuple[str, str]] = ()) -> tuple[ChatRequest, ResponsesBody]:
    """The request, and the body as it came, for what is told back. Raises BadInput, EmptyBody."""
    asked = chat_body.decode_as(_decoder, body)
    chat_body.merge_query(asked, query)
    model = chat_body.required_model(asked)
    if asked.previous_response_id or chat_body.flag("background", asked.background):
        name = "previous_response_id" if asked.previous_response_id else "background"
        bad(f"'{name}' is not supported: nothing is kept between calls; send the whole conversation", name)
    if asked.input is None:
        bad("'input' is missing; send a text or a list of items", "input")
    if len(memoryview(asked.metadata)) > MAX_METADATA_BYTES:
        bad(f"'metadata' may have at most {MAX_METADATA_BYTES} bytes", "metadata")
    fields = as_body(asked)
    fields.max_tokens = chat_body.whole("max_output_tokens", asked.max_output_tokens, _WHOLE)
    fields.messages = _turns(asked)
    if asked.text is not None:
        fields.response_format = _format(asked.text.format)
    return chat_request(fields, model, "openai"), asked


def _turns(asked: ResponsesBody) -> list[Turn]:
    turns = [Turn("system", asked.instructions)] if asked.instructions else []
    if isinstance(asked.input, str):
        if not asked.input:
            bad("'input' is empty; send some text", "input")
        return [*turns, Turn("user", asked.input)]
    for index, item in enumerate(asked.input or ()):
        kind = item.type or "message"
        if kind == "message":
            if item.role is None:
                bad(f"'input[{index}].role' is missing", "input")
            turns.append(Turn(item.role, _parts(f"input[{index}].content", item.content)))
        elif kind == "function_call":
            call = TurnCall(id=item.call_id, function=CallBody(item.name, item.arguments))
            if turns and turns[-1].role == "assistant":  # one turn of the model is several items here
                turns[-1].tool_calls = [*(turns[-1].tool_calls or ()), call]
            else:
                turns.append(Turn("assistant", None, [call]))
        elif kind == "function_call_output":
            turns.append(Turn("tool", _parts(f"input[{index}].output", item.output), tool_call_id=item.call_id))
        elif kind != "reasoning":
            bad(f"'input[{index}].type' must be message, function_call, function_call_output or reasoning", "input")
    if not turns:
        bad("'input' is empty; send at least one message", "input")
    return turns


def _parts(path: str, content: str | list[Part] | None) -> str:
    if content is None:
        bad(f"'{path}' must be a string or a list of text parts", "input")
    if isinstance(content, str):
        return content
    for part in content:
        if part.type not in _TEXT_PARTS or part.text is None:
            bad(f'\'{path}\' may hold parts of type "input_text" and "output_text" only', "input")
    return "".join(part.text or "" for part in content)


def _format(raw: msgspec.Raw) -> msgspec.Raw:
    """OpenAI's flat form, `{type, name, schema}`, in the nested one that the chat dialect has."""
    try:
        wanted: Any = msgspec.json.decode(raw)
    except (msgspec.DecodeError, UnicodeError, RecursionError) as error:
        bad(f"'text.format' is not valid JSON: {error}", "text")
    if not isinstance(wanted, dict) or wanted.get("type") != "json_schema":
        return raw
    if not isinstance(wanted.get("schema"), dict):
        bad("'text.format.schema' must be a JSON schema", "text")
    return msgspec.Raw(msgspec.json.encode({"type": "json_schema", "json_schema": wanted["schema"]}))
