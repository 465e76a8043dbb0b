"""One JSON value as it comes, character by character: whether it is still JSON, and where it ends.

A stack of open brackets and what may come next. Nothing is built: who wants the value decodes `text` at the end. Models
write line breaks into strings as they are, which JSON forbids; those are told as escapes, so that `text` is strict.
"""

import re
from typing import Final, Literal

MAX_DEPTH: Final = 64
SPACES: Final = " \t\r\n"
_NUMBER: Final = re.compile(r"-?(0|[1-9][0-9]*)(\.[0-9]+)?([eE][+-]?[0-9]+)?")
_LITERALS: Final = frozenset({"true", "false", "null"})
_WORD: Final = frozenset("+-.0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ")
_MAX_WORD: Final = 400

_Place = Literal["value", "first_value", "key", "first_key", "colon", "after", "string", "escape", "hex", "word", "end"]


class NotJson(Exception):
    """The character cannot stand here."""


class JsonValue:
    """State: `done` once the value is complete. A number or a literal is only complete when something else follows."""

    def __init__(self) -> None:
        self.done = False
        self._parts: list[str] = []
        self._open: list[str] = []
        self._place: _Place = "value"
        self._is_key = False
        self._word = ""
        self._hex = ""
        self._half = False  # the last escape was the first half of a pair

    @property
    def text(self) -> str:
        """What came, as strict JSON."""
        return "".join(self._parts)

    @property
    def begun(self) -> str:
        """The first character, or nothing."""
        return self._parts[0] if self._parts else ""

    def push(self, char: str) -> str:
        """The character as strict JSON writes it; nothing when the value ended before it. Raises NotJson."""
        if self._place == "word" and char not in _WORD:
            self._end_word()
            if self.done:
                return ""
        spelled = self._take(char)
        self._parts.append(spelled)
        return spelled

    def _take(self, char: str) -> str:
        place = self._place
        if place in ("string", "escape", "hex"):
            return self._in_string(char)
        if place == "word":
            self._word += char
            if len(self._word) > _MAX_WORD:
                raise NotJson
        elif char in SPACES and self._open:
            pass
        elif place == "colon" and char == ":":
            self._place = "value"
        elif place in ("key", "first_key") and char == '"':
            self._place, self._is_key = "string", True
        elif (place == "first_key" and char == "}") or (place == "first_value" and char == "]"):
            self._close()
        elif place in ("value", "first_value"):
            self._begin(char)
        elif place == "after" and char == ",":
            self._place = "key" if self._open[-1] == "{" else "value"
        elif place == "after" and char == {"{": "}", "[": "]"}[self._open[-1]]:
            self._close()
        else:
            raise NotJson
        return char

    def _begin(self, char: str) -> None:
        if char in "{[":
            if len(self._open) == MAX_DEPTH:
                raise NotJson
            self._open.append(char)
            self._place = "first_key" if char == "{" else "first_value"
        elif char == '"':
            self._place, self._is_key = "string", False
        elif char in _WORD:
            self._place, self._word = "word", char
        else:
            raise NotJson

    def _in_string(self, char: str) -> str:
        if self._place == "string":
            if self._half and char != "\\":
                raise NotJson
            if char == '"':
                self._place, self._is_key = ("colon", False) if self._is_key else ("after", False)
                self._end_if_outermost()
            elif char == "\\":
                self._place = "escape"
            elif char < " ":
                return {"\n": "\\n", "\r": "\\r", "\t": "\\t"}.get(char, f"\\u{ord(char):04x}")
        elif self._place == "escape":
            if char not in '"\\/bfnrtu' or (self._half and char != "u"):
                raise NotJson
            self._place, self._hex = ("hex", "") if char == "u" else ("string", "")
        else:
            self._hex += char
            if char not in "0123456789abcdefABCDEF":
                raise NotJson
            if len(self._hex) == 4:
                self._place = "string"
                self._pair(int(self._hex, 16))
        return char

    def _pair(self, unit: int) -> None:
        """Halves of a pair come together or not at all: alone they are not Unicode."""
        is_low = 0xDC00 <= unit < 0xE000
        if is_low != self._half:
            raise NotJson
        self._half = 0xD800 <= unit < 0xDC00

    def _end_word(self) -> None:
        if self._word not in _LITERALS and not _NUMBER.fullmatch(self._word):
            raise NotJson
        self._place = "after"
        self._end_if_outermost()

    def _close(self) -> None:
        self._open.pop()
        self._place = "after"
        self._end_if_outermost()

    def _end_if_outermost(self) -> None:
        if not self._open:
            self._place, self.done = "end", True
