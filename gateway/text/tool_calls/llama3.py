"""Llama 3.1 to 3.3: the answer is `{"name": …, "parameters": …}`, alone or behind `<|python_tag|>`.

Such an object counts at the beginning of an answer and behind the tag only: elsewhere it is an example in a text.
Several are separated by `;`. Python behind the tag (the built-in code interpreter) is no call and stays text.
"""

from collections.abc import Callable

from gateway.messages import Tool, ToolChoice
from gateway.text.tool_calls.base import FormatName
from gateway.text.tool_calls.call_grammar import call_rules
from gateway.text.tool_calls.parser import CallParser, Syntax

_SYNTAX = Syntax("<|python_tag|>", separators=";", bare=True)


class Llama3:
    """See `ToolFormat`."""

    name: FormatName = "llama3"
    marks = ("<|python_tag|>",)
    tokens = marks

    def recognises(self, template: str) -> bool:
        """The tag, or the role under which results go back."""
        return "<|python_tag|>" in template or "ipython" in template

    def call_id(self, said: str) -> str:
        """Any id: the templates do not show them."""
        return said

    def parser(self, tools: tuple[Tool, ...], *, eager: bool, at_most_one: bool) -> CallParser:
        """See `ToolFormat.parser`."""
        return CallParser(_SYNTAX, tools, eager=eager, at_most_one=at_most_one)

    def calls(self, tools: tuple[Tool, ...], choice: ToolChoice, spell: Callable[[str], str]) -> str:
        """One call: the public templates refuse turns with more."""
        return "calls: call\n" + call_rules(tools, choice, "parameters")
