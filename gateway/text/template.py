"""Messages to the one text that a base was trained on: its chat template, rendered as transformers renders it.

Templates come from the operator's model folder only, never from callers, and run in jinja2's immutable sandbox. A
folder without a template gets a plain default ("System: … User: … Assistant:"), which any base can follow.
"""

import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any, NoReturn

import jinja2
from jinja2 import nodes
from jinja2.ext import loopcontrols
from jinja2.sandbox import ImmutableSandboxedEnvironment

_FALLBACK = (
    "{% for message in messages %}{{ message.role | capitalize }}: {{ message.content | trim }}\n{% endfor %}"
    "{% if add_generation_prompt %}Assistant:{% endif %}"
)


class TemplateFault(Exception):
    """The template cannot be compiled, or refuses these messages; the text is the template's own reason."""


class ChatTemplate:
    """A compiled template, and the one for requests with tools where the folder has another for those.

    `is_fallback` says that the folder had none, so nobody wrote bos into the text. `source` is the text of what renders
    tools; `knows_tools` says whether it looks at them at all.
    """

    def __init__(self, source: str | None, *, bos: str | None, eos: str | None, tool_source: str | None = None) -> None:
        self.is_fallback = source is None
        self.source = tool_source or source or ""
        self._tokens = {"bos_token": bos or "", "eos_token": eos or ""}
        environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols])
        environment.filters["tojson"] = _tojson
        environment.globals["raise_exception"] = _raise
        environment.globals["strftime_now"] = _strftime_now
        try:
            self._template = environment.from_string(_FALLBACK if source is None else source)
            self._tool_template = environment.from_string(tool_source) if tool_source else self._template
            for template in (self._template, self._tool_template):
                # jinja's own is a chain of maps, and each rendering copies it: a plain one takes a third of the time.
                template.globals = dict(template.globals)
            names = environment.parse(self.source).find_all(nodes.Name)
            self.knows_tools = any(name.name == "tools" and name.ctx == "load" for name in names)
        except jinja2.TemplateError as error:
            raise TemplateFault(f"the chat template does not compile: {error}") from error

    def render(self, messages: Sequence[Mapping[str, Any]], tools: Sequence[Mapping[str, Any]] | None = None) -> str:
        """The prompt up to where the assistant begins. Both as `apply_chat_template` takes them. Raises TemplateFault.

        What a template may look for and we do not have is None, as it is there.
        """
        template = self._template if tools is None else self._tool_template
        try:
            return template.render(
                messages=messages, tools=tools, documents=None, add_generation_prompt=True, **self._tokens
            )
        except Exception as error:  # a template is a program: it may divide by zero or recurse as well as refuse
            raise TemplateFault(str(error) or type(error).__name__) from error


def _raise(message: str) -> NoReturn:
    raise jinja2.TemplateError(message)


def _strftime_now(pattern: str) -> str:
    return datetime.now().strftime(pattern)  # local time, as transformers does


def _tojson(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """Unlike jinja's own, no HTML escapes: models were trained without them."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)
