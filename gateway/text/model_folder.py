"""What a Hugging Face folder says about its text: the tokenizer, the names of bos and eos, the chat templates."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any


class TokenizerFault(Exception):
    """The folder holds no usable tokenizer; the text says which file and why. A configuration error."""


@dataclass(frozen=True)
class ModelFolder:
    """`tool_template` is set where requests with tools have a template of their own ("tool_use")."""

    tokenizer: str
    bos: str | None
    eos: str | None
    template: str | None
    tool_template: str | None


def read_model_folder(folder: Path) -> ModelFolder:
    """Reads tokenizer.json, tokenizer_config.json, special_tokens_map.json and the chat templates.

    A template in a file of its own goes before one in tokenizer_config.json. Raises TokenizerFault.
    """
    tokenizer = _read(folder / "tokenizer.json")
    if tokenizer is None:
        raise TokenizerFault(
            f"{folder / 'tokenizer.json'} is missing; a Hugging Face folder with a fast tokenizer is needed"
        )
    config = _read_json(folder / "tokenizer_config.json")
    named = _read_json(folder / "special_tokens_map.json")
    bos, eos = (_token_text(config.get(key) or named.get(key)) for key in ("bos_token", "eos_token"))
    template = _read(folder / "chat_template.jinja")
    tool_template = _read(folder / "additional_chat_templates" / "tool_use.jinja")
    if template is None:
        template = _named(config.get("chat_template"), "default")
        tool_template = tool_template or _named(config.get("chat_template"), "tool_use")
    return ModelFolder(tokenizer, bos, eos, template, tool_template)


def _named(template: Any, name: str) -> str | None:
    """`chat_template` is a text, which is the default one, or a list of named ones."""
    if isinstance(template, list):
        template = next((entry.get("template") for entry in template if entry.get("name") == name), None)
    elif name != "default":
        return None
    return template if isinstance(template, str) else None


def _token_text(value: Any) -> str | None:
    """A special token is written as a text or as an object with `content`."""
    if isinstance(value, dict):
        value = value.get("content")
    return value if isinstance(value, str) else None


def _read(path: Path) -> str | None:
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        return None
    except (OSError, UnicodeDecodeError) as error:
        raise TokenizerFault(f"{path}: cannot be read: {error}") from error


def _read_json(path: Path) -> dict[str, Any]:
    text = _read(path)
    if text is None:
        return {}
    try:
        value = json.loads(text)
    except ValueError as error:
        raise TokenizerFault(f"{path}: not JSON: {error}") from error
    return value if isinstance(value, dict) else {}
