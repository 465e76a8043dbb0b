"""Which way of calling functions a base was trained on: the operator's word, else what its chat template teaches."""

from collections.abc import Mapping
from typing import Final

from gateway.messages import ChatRequest
from gateway.text.tool_calls.base import FormatName, ToolFormat
from gateway.text.tool_calls.call_grammar import literal, schema_rule
from gateway.text.tool_calls.hermes import Hermes
from gateway.text.tool_calls.llama3 import Llama3
from gateway.text.tool_calls.mistral import Mistral

FORMATS: Final[tuple[ToolFormat, ...]] = (Mistral(), Hermes(), Llama3())


def choose_format(template: str, wanted: FormatName | None) -> ToolFormat | None:
    """The first format that recognises the template; None for none. `wanted` goes first."""
    if wanted is not None:
        return next((known for known in FORMATS if known.name == wanted), None)
    return next((known for known in FORMATS if known.recognises(template)), None)


def call_grammar(known: ToolFormat | None, asked: ChatRequest, mark_ids: Mapping[str, int]) -> str | None:
    """Lark for an answer that must be calls, or else, with a JSON schema, calls or such JSON; None for neither.

    A mark that is a token of its own is named by its id, because no text makes it; in other vocabularies it is text.
    """

    def spell(token: str) -> str:
        return f"<[{mark_ids[token]}]>" if token in mark_ids else literal(token)

    choice = asked.tool_choice
    if known is None or not asked.offered or (choice.mode == "auto" and asked.json_schema is None):
        return None
    start = "start: calls\n"
    if choice.mode != "required":
        start = f"start: calls | json\njson: {schema_rule(asked.json_schema or '{}')}\n"
    return start + known.calls(asked.offered, choice, spell)
