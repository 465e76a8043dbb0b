"""What a model answered, out of a recorded reply: text and calls, native or OpenAI, whole or streamed.

None for a reply that is not readable, or a stream that has no end. Of several choices the first counts. Calls come out
in OpenAI's shape, with the ids that they were told with, or else ones from their place.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import msgspec


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
    message = _first_choice(result).get("message")
    if not isinstance(message, dict):
        return None
    said.add_text(message.get("content"))
    said.add_calls(message.get("tool_calls"))
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
        delta = _first_choice(event).get("delta")
        if isinstance(delta, dict):
            said.add_text(delta.get("content"))
            said.add_calls(delta.get("tool_calls"))
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
