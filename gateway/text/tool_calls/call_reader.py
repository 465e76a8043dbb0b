"""One call as models write it, character by character: `{"name": "…", "arguments": {…}}`, in any order of keys.

`parameters` means the same as `arguments`, `function` the same as `name`; ids and types are read over. An object with
another key before the name, or with the name of a function that was not offered, is no call. No arguments, or null,
are none; arguments that were encoded twice, as a string, are decoded.
"""

from typing import Final, Literal

import msgspec

from gateway.text.tool_calls.json_value import SPACES, JsonValue, NotJson

_NAME: Final = ("name", "function")
_ARGUMENTS: Final = ("arguments", "parameters")
_IGNORED: Final = ("id", "type", "index")

_Place = Literal["open", "first_key", "key", "in_key", "colon", "value", "after", "end"]


class CallReader:
    """`name` once it is known to be a function's."""

    def __init__(self, names: frozenset[str]) -> None:
        self.name: str | None = None
        self._fresh: list[str] = []
        self._names = names
        self._place: _Place = "open"
        self._key = ""
        self._value = JsonValue()
        self._complete = False  # the arguments

    @property
    def closed(self) -> bool:
        """Whether the object has ended."""
        return self._place == "end"

    @property
    def usable(self) -> bool:
        """Whether it is a call even if its object never ends: a model may forget the last brace."""
        return self.name is not None and self._complete

    def take_arguments(self) -> str:
        """What came of the arguments since the last time, strict JSON; everything that is taken makes the whole."""
        fresh, self._fresh = "".join(self._fresh), []
        return fresh

    def push(self, char: str) -> None:
        """Raises NotJson for what cannot be, or become, a call."""
        if self._place == "in_key":
            self._value.push(char)
            if self._value.done:
                self._key, self._place = msgspec.json.decode(self._value.text, type=str), "colon"
                if self.name is None and self._key not in (*_NAME, *_ARGUMENTS, *_IGNORED):
                    raise NotJson
        elif self._place == "value" and (self._value.begun or char not in SPACES):
            self._push_value(char)
        elif char not in SPACES:
            self._push_mark(char)

    def _push_mark(self, char: str) -> None:
        match self._place, char:
            case "open", "{":
                self._place = "first_key"
            case (("first_key" | "key"), '"'):
                self._place, self._value = "in_key", JsonValue()
                self._value.push(char)
            case "colon", ":":
                self._place, self._value = "value", JsonValue()
            case "after", ",":
                self._place = "key"
            case "after", "}" if self.name is not None:
                self._place = "end"
                if not self._complete:
                    self._fresh, self._complete = ["{}"], True
            case _:
                raise NotJson

    def _push_value(self, char: str) -> None:
        spelled = self._value.push(char)
        is_object = self._value.begun == "{"
        if self._key in _ARGUMENTS and is_object and not self._complete:
            self._fresh.append(spelled)
        if self._value.done:
            self._place = "after"
            self._end_value(is_object)
            if not spelled and char not in SPACES:
                self._push_mark(char)

    def _end_value(self, is_object: bool) -> None:
        if self._key in _NAME and self.name is None:
            text = self._value.text
            if not text.startswith('"') or (name := msgspec.json.decode(text, type=str)) not in self._names:
                raise NotJson
            self.name = name
        elif self._key in _ARGUMENTS and not self._complete:
            if not is_object:
                self._fresh = [_unwrapped(self._value.text)]
            self._complete = True


def _unwrapped(text: str) -> str:
    if text == "null":
        return "{}"
    if not text.startswith('"'):
        raise NotJson
    inner = msgspec.json.decode(text, type=str).strip(SPACES)
    value = JsonValue()
    if not inner.startswith("{") or not all(value.push(char) and not value.done for char in inner[:-1]):
        raise NotJson
    value.push(inner[-1])
    if not value.done:
        raise NotJson
    return value.text
