"""Calls among an answer's text, as it comes; what is no call after all is text again, word for word.

    TEXT > (opening) > HEAD > ({) > CALL > (}) > AFTER > TEXT
                          > ([) > CALL > (}) > LIST > (,) CALL ... > (]) > AFTER

Text flows at once, except what may be the beginning of an opening, and white space, which belongs to a call that
follows it. A call is held back until it is whole; `eager`, until its function is known, and then told piece by piece.
When the text turns out to be no call (not JSON, an unknown function, cut off), what was not told yet is text, and the
search for openings goes on behind the place where it broke: every character is looked at once.
"""

import secrets
import string
from dataclasses import dataclass
from typing import Final, Literal

from gateway.messages import Tool, ToolCallDelta
from gateway.text.tool_calls.base import Parsed
from gateway.text.tool_calls.call_reader import CallReader
from gateway.text.tool_calls.json_value import SPACES, NotJson

_ALPHABET: Final = string.ascii_letters + string.digits


@dataclass(frozen=True)
class Syntax:
    """bare: an answer may begin with a call without the opening. separators: may stand between calls in one opening.

    short_ids: nine letters and digits, without a prefix.
    """

    opening: str
    closing: str = ""
    separators: str = ""
    bare: bool = False
    short_ids: bool = False


class CallParser:
    """`gateway.text.tool_calls.base.Parser` for calls that are JSON objects. State: the diagram above."""

    def __init__(self, syntax: Syntax, tools: tuple[Tool, ...], *, eager: bool, at_most_one: bool) -> None:
        self.num_whole = 0
        self.is_half_told = False
        self._syntax = syntax
        self._names = frozenset(tool.name for tool in tools)
        self._eager = eager
        self._at_most_one = at_most_one
        self._place: Literal["text", "head", "call", "list", "after", "over"] = "head" if syntax.bare else "text"
        self._held = ""  # what may become part of a call, or else is text
        self._span: list[str] = []  # what follows it, of a call
        self._in_list = False
        self._reader = CallReader(self._names)
        self._id = ""
        self._num_begun = 0
        self._text: list[str] = []
        self._calls: list[ToolCallDelta] = []
        self._spent: list[str] = []

    def push(self, text: str) -> Parsed:
        """See `Parser.push`."""
        at = 0
        while at < len(text):
            if self._place == "text":
                at = self._look(text, at)
            else:
                at += self._step(text[at])
        return self._given()

    def flush(self) -> Parsed:
        """See `Parser.flush`."""
        if self._place == "call" and self._reader.usable:
            self._end_call()
        is_text = self._place in ("head", "call") or self._held.strip(SPACES) != ""
        if self._place in ("list", "after", "over") or (self.num_whole and not is_text):
            self._drop()
        else:
            self.is_half_told |= self._place == "call" and self._id != ""
            self._give_back()
        self._place = "over"
        return self._given()

    def _given(self) -> Parsed:
        parsed = Parsed("".join(self._text), tuple(self._calls), "".join(self._spent))
        self._text, self._calls, self._spent = [], [], []
        return parsed

    def _look(self, text: str, at: int) -> int:
        """TEXT: gives everything up to the opening, or up to what may begin one. Returns where to go on."""
        opening, before = self._syntax.opening, len(self._held)
        held = self._held + text[at:]
        found = held.find(opening)
        if found >= 0:
            end = len(held[:found].rstrip(SPACES))
            self._text.append(held[:end])
            self._held, self._place = held[end : found + len(opening)], "head"
            return at + found + len(opening) - before
        tail = next(n for n in range(min(len(held), len(opening) - 1), -1, -1) if held.endswith(opening[:n]))
        end = len(held[: len(held) - tail].rstrip(SPACES))
        self._text.append(held[:end])
        self._held = held[end:]
        return len(text)

    def _step(self, char: str) -> int:
        """One character anywhere but in text; 0 when it was not taken."""
        if self._place == "over":
            self._spent.append(char)
            return 1
        if self._place == "call":
            return self._step_call(char)
        if not self._fits(char):
            self._no_call()
            return 0
        self._held += char
        if char == "{":
            self._place, self._reader, self._id = "call", CallReader(self._names), ""
            self._reader.push(char)
        elif char == "[":
            self._in_list = True
        elif char == "]":
            self._in_list = False
            self._drop()
            self._place = self._behind()
        elif self._place == "after" and self._held.strip(SPACES) == self._syntax.closing != "":
            self._drop()
            self._place = "text"
        return 1

    def _fits(self, char: str) -> bool:
        """HEAD, LIST and AFTER: whether it is white space, punctuation, or the beginning of a call."""
        place, syntax = self._place, self._syntax
        if char in SPACES:
            return not self._is_closing()
        if char == "{":
            return self._may_begin()
        if place == "head":
            return char == "[" and not self._in_list
        if place == "list":
            return char == "]" or (char == "," and "," not in self._held)
        said = self._held.strip(SPACES)
        return (char in syntax.separators and not said) or syntax.closing.startswith(said + char)

    def _may_begin(self) -> bool:
        match self._place:
            case "head":
                return True
            case "list":
                return "," in self._held
            case _:
                return bool(self._syntax.separators) and not self._is_closing()

    def _is_closing(self) -> bool:
        """Whether a part of the closing was read."""
        said = self._held.strip(SPACES)
        return self._place == "after" and said != "" and self._syntax.closing.startswith(said)

    def _no_call(self) -> None:
        """What is held is text; white space, or half a closing, may still belong to a call that follows."""
        if self._place != "after" and (self._span or self._held.strip(SPACES)):
            self._give_back()
        self._place, self._in_list = "text", False

    def _step_call(self, char: str) -> int:
        try:
            self._reader.push(char)
        except NotJson:
            if self._reader.usable:
                self._end_call()
            else:
                self.is_half_told |= self._id != ""
                self._no_call()
            return 0
        self._span.append(char)
        if self._reader.closed:
            self._end_call()
        elif self._eager and self._reader.name is not None:
            self._tell()
        return 1

    def _tell(self) -> None:
        """What is known of the call and was not told."""
        new = self._reader.take_arguments()
        if self._id:
            if not new:
                return  # punctuation, or what must be whole before it can be told
            index = self._num_begun - 1
            if self._calls and self._calls[-1].index == index:
                last = self._calls.pop()
                self._calls.append(ToolCallDelta(index, last.id, last.name, last.arguments + new))
            else:
                self._calls.append(ToolCallDelta(index, arguments=new))
        else:
            self._id = _random(9) if self._syntax.short_ids else "call_" + _random(24)
            self._calls.append(ToolCallDelta(self._num_begun, self._id, self._reader.name, new))
            self._num_begun += 1
        self._drop()

    def _end_call(self) -> None:
        self._tell()
        self._drop()
        self.num_whole += 1
        if self._at_most_one:
            self._place = "over"
        else:
            self._place = "list" if self._in_list else self._behind()

    def _behind(self) -> Literal["after", "text"]:
        return "after" if self._syntax.closing or self._syntax.separators else "text"

    def _drop(self) -> None:
        self._spent += [self._held, *self._span]
        self._held, self._span = "", []

    def _give_back(self) -> None:
        self._text += [self._held, *self._span]
        self._held, self._span = "", []


def _random(length: int) -> str:
    return "".join(secrets.choice(_ALPHABET) for _ in range(length))
