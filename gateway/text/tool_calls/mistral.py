"""Mistral with the v0.3 tokenizer: `[TOOL_CALLS]` and a list of `{"name": …, "arguments": …}`.

Ids are nine letters and digits: the public templates refuse others, so those are turned into such. Later tokenizers
write `name[ARGS]{…}`, which is another format and is not recognised.
"""

import hashlib
import re
from collections.abc import Callable

from gateway.messages import Tool, ToolChoice
from gateway.text.tool_calls.base import FormatName
from gateway.text.tool_calls.call_grammar import call_rules, repeated
from gateway.text.tool_calls.parser import CallParser, Syntax

_ID = re.compile(r"[a-zA-Z0-9]{9}")
_SYNTAX = Syntax("[TOOL_CALLS]", short_ids=True)


class Mistral:
    """See `ToolFormat`."""

    name: FormatName = "mistral"
    marks = ("[TOOL_CALLS]",)
    tokens = (
        *marks, "[AVAILABLE_TOOLS]", "[/AVAILABLE_TOOLS]", "[TOOL_RESULTS]", "[/TOOL_RESULTS]",
    )  # fmt: skip

    def recognises(self, template: str) -> bool:
        """The opening, without the marks of later formats."""
        return "[TOOL_CALLS]" in template and "[ARGS]" not in template

    def call_id(self, said: str) -> str:
        """One that is not ours, as clients make them up or bring them from other models, by its hash."""
        return said if _ID.fullmatch(said) else hashlib.sha256(said.encode()).hexdigest()[:9]

    def parser(self, tools: tuple[Tool, ...], *, eager: bool, at_most_one: bool) -> CallParser:
        """See `ToolFormat.parser`."""
        return CallParser(_SYNTAX, tools, eager=eager, at_most_one=at_most_one)

    def calls(self, tools: tuple[Tool, ...], choice: ToolChoice, spell: Callable[[str], str]) -> str:
        """A list of calls behind the opening."""
        more = repeated(choice) and f' (", " call){repeated(choice)}'
        return f'calls: {spell("[TOOL_CALLS]")} /\\ ?\\[/ call{more} "]"\n' + call_rules(tools, choice, "arguments")
