"""What a model family's way of calling functions must be able to say, and what a parser gives.

A family has a file here. Text that comes in is the model's own, with the control tokens in `ToolFormat.marks` spelled
out; text that goes out is what the caller reads, and pieces of calls.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, Protocol

from gateway.messages import Tool, ToolCallDelta, ToolChoice

FormatName = Literal["llama3", "mistral", "hermes", "none"]


@dataclass(frozen=True)
class Parsed:
    """What became certain. `spent` is the model's text that became calls, or was only their punctuation."""

    text: str = ""
    calls: tuple[ToolCallDelta, ...] = ()
    spent: str = ""


class Parser(Protocol):
    """Of one answer. However its text is cut into pieces, the joined result is the same."""

    num_whole: int
    is_half_told: bool

    def push(self, text: str) -> Parsed:
        """The next piece of the answer."""
        ...

    def flush(self) -> Parsed:
        """The end: what was held back and is no call after all is text."""
        ...


class ToolFormat(Protocol):
    """One per family, without state."""

    @property
    def name(self) -> FormatName:
        """What settings call it."""
        ...

    @property
    def marks(self) -> tuple[str, ...]:
        """The control texts of an answer, which its parser must see."""
        ...

    @property
    def tokens(self) -> tuple[str, ...]:
        """All control texts of the format: a caller's words never become them."""
        ...

    def recognises(self, template: str) -> bool:
        """Whether this chat template teaches the format."""
        ...

    def call_id(self, said: str) -> str:
        """A caller's id of a call, as the templates of this family take it; the same for the same id."""
        ...

    def parser(self, tools: tuple[Tool, ...], *, eager: bool, at_most_one: bool) -> Parser:
        """eager: pieces of a call are told before it is known to be whole."""
        ...

    def calls(self, tools: tuple[Tool, ...], choice: ToolChoice, spell: Callable[[str], str]) -> str:
        """Lark rules of which `calls` is the model's answer when it must call. `spell` writes a control token."""
        ...
