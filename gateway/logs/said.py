"""What a model answered, out of a recorded reply: text and calls, in every dialect, whole or streamed.

None for a reply that is not readable, or a stream that has no end. Of several choices the first counts. Calls come out
in OpenAI's shape, with the ids that they were told with, or else ones from their place. The shapes tell themselves
apart: a `response` (native), `choices` (OpenAI's chat and completions), `content` (Anthropic), `output` (Responses).
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Final

import msgspec

_RESPONSE_ENDS: Final = ("response.completed", "response.incomplete")


@dataclass
class Said:
    """One answer. `calls` by index: as much as was told of each."""

    texts: list[str] = field(default_factory=list)
    calls: dict[int, dict[str, Any]] = field(default_factory=dict)

    def turn(self) -> dict[str, Any] | None:
        """The assistant's turn; None when it says nothing, or calls with half a word."""
        text = "".join(self.texts)
        if not text and not self.calls:
            return None
        turn: dict[str, Any] = {"role": "assistant", "content": text}
        if self.calls:
            turn["tool_calls"] = [call for _, call in sorted(self.calls.items())]
            if not all(isinstance(_json(call["function"]["arguments"]), dict) for call in turn["tool_calls"]):
                return None
        return turn

    def add_text(self, text: Any) -> None:
        """A piece of it; null is none."""
        if isinstance(text, str):
            self.texts.append(text)

    def add_calls(self, calls: Any) -> None:
        """Calls, or pieces of them, as either dialect writes them."""
        for place, call in enumerate(calls if isinstance(calls, list) else ()):
            if isinstance(call, dict):
                index = call.get("index")
                self._add(call, index if isinstance(index, int) else place)

    def add_block(self, index: int, block: dict[str, Any]) -> None:
        """One of Anthropic's: text, or a call of this index."""
        if block.get("type") == "tool_use":
            self._add({**block, "arguments": block.get("input")}, index)
        elif block.get("type") == "text":
            self.add_text(block.get("text"))

    def add_event(self, event: dict[str, Any]) -> None:
        """What begins one of Anthropic's blocks, or goes on with it. A call's input comes in pieces after its name."""
        index, begun, delta = event.get("index"), event.get("content_block"), event.get("delta")
        if not isinstance(index, int):
            return
        if isinstance(begun, dict):
            self.add_block(index, {**begun, "input": ""})
        if isinstance(delta, dict):
            self.add_text(delta.get("text"))
            if "partial_json" in delta:
                self._add({"arguments": delta["partial_json"]}, index)

    def _add(self, call: dict[str, Any], index: int) -> None:
        told = call["function"] if isinstance(call.get("function"), dict) else call
        known = self.calls.setdefault(
            index, {"id": f"call_{index}", "type": "function", "function": {"name": "", "arguments": ""}}
        )
        known["id"] = call.get("id") or known["id"]
        function, arguments = known["function"], told.get("arguments", "")
        function["name"] = told.get("name") or function["name"]
        function["arguments"] += arguments if isinstance(arguments, str) else msgspec.json.encode(arguments).decode()


def read_whole(body: bytes) -> Said | None:
    """The answer of a whole reply: native (in its envelope) or OpenAI."""
    response = _json(body)
    if not isinstance(response, dict):
        return None
    said = Said()
    result = response["result"] if isinstance(response.get("result"), dict) else response
    if "response" in result:
        value = result["response"]
        is_text = value is None or isinstance(value, str)
        said.add_text(value if is_text else msgspec.json.encode(value).decode())  # JSON mode answers with the value
        said.add_calls(result.get("tool_calls"))
        return said
    if isinstance(result.get("content"), list):
        for block in _objects(result["content"]):
            said.add_block(len(said.calls), block)
        return said
    if isinstance(result.get("output"), list):
        for item in _objects(result["output"]):
            for part in _objects(item.get("content")):
                said.add_text(part.get("text"))
            if item.get("type") == "function_call":
                said.add_calls([{**item, "index": len(said.calls), "id": item.get("call_id")}])
        return said
    choice = _first_choice(result)
    message = choice.get("message")
    if isinstance(message, dict):
        said.add_text(message.get("content"))
        said.add_calls(message.get("tool_calls"))
    elif isinstance(choice.get("text"), str):
        said.add_text(choice["text"])
    else:
        return None
    return said


def read_stream(body: bytes) -> Said | None:
    """The answer of a recorded event stream; None when it has no end or an event that is not ours."""
    said = Said()
    for data in _events(body):
        if data.strip() == b"[DONE]":
            return said
        event = _json(data)
        if not isinstance(event, dict) or event.get("errors") or event.get("error"):
            return None
        kind = event.get("type")
        if kind in _RESPONSE_ENDS:  # it holds the whole answer once more
            return read_whole(msgspec.json.encode(event.get("response")))
        if kind == "message_stop":
            return said
        choice = _first_choice(event)
        delta = choice.get("delta")
        if kind in ("content_block_start", "content_block_delta"):
            said.add_event(event)
        elif isinstance(delta, dict):
            said.add_text(delta.get("content"))
            said.add_calls(delta.get("tool_calls"))
        elif choice:
            said.add_text(choice.get("text"))
        else:
            said.add_text(event.get("response"))
            said.add_calls(event.get("tool_calls"))
    return None


def _events(body: bytes) -> Iterator[bytes]:
    """The data of each server-sent event."""
    for event in body.replace(b"\r\n", b"\n").replace(b"\r", b"\n").split(b"\n\n"):
        lines = [line[5:].removeprefix(b" ") for line in event.split(b"\n") if line.startswith(b"data:")]
        if lines:
            yield b"\n".join(lines)


def _objects(items: Any) -> list[dict[str, Any]]:
    return [item for item in items if isinstance(item, dict)] if isinstance(items, list) else []


def _first_choice(result: dict[str, Any]) -> dict[str, Any]:
    """The choice at index 0; an event may be about another one."""
    choices = result.get("choices")
    if not isinstance(choices, list):
        return {}
    return next((one for one in choices if isinstance(one, dict) and one.get("index", 0) == 0), {})


def _json(data: bytes | str) -> Any:
    try:
        return msgspec.json.decode(data)
    except (msgspec.DecodeError, RecursionError):
        return None
