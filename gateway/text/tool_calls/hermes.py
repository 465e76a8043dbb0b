"""Hermes, Qwen 2.5 and Qwen 3: each call in `<tool_call>` … `</tool_call>`, as `{"name": …, "arguments": …}`.

Text may stand before and behind. A forgotten `</tool_call>` is forgiven.
"""

from collections.abc import Callable

from gateway.messages import Tool, ToolChoice
from gateway.text.tool_calls.base import FormatName
from gateway.text.tool_calls.call_grammar import call_rules, repeated
from gateway.text.tool_calls.parser import CallParser, Syntax

_SYNTAX = Syntax("<tool_call>", closing="</tool_call>")


class Hermes:
    """See `ToolFormat`."""

    name: FormatName = "hermes"
    marks = ("<tool_call>", "</tool_call>")
    tokens = (*marks, "<tool_response>", "</tool_response>", "<tools>", "</tools>")

    def recognises(self, template: str) -> bool:
        """The opening, with JSON in it: others put XML there."""
        return "<tool_call>" in template and "<function=" not in template and "<arg_key>" not in template

    def call_id(self, said: str) -> str:
        """Any id: the templates do not show them."""
        return said

    def parser(self, tools: tuple[Tool, ...], *, eager: bool, at_most_one: bool) -> CallParser:
        """See `ToolFormat.parser`."""
        return CallParser(_SYNTAX, tools, eager=eager, at_most_one=at_most_one)

    def calls(self, tools: tuple[Tool, ...], choice: ToolChoice, spell: Callable[[str], str]) -> str:
        """A block a call, each on lines of its own."""
        more = repeated(choice) and f' ("\\n" block){repeated(choice)}'
        block = f'block: {spell("<tool_call>")} "\\n" call "\\n" {spell("</tool_call>")}\n'
        return f"calls: block{more}\n" + block + call_rules(tools, choice, "arguments")
