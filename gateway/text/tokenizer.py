"""Text to token ids for one base, with one rule that nothing may break: what a caller wrote never becomes control.

A chat template mixes control tokens (`<|user|>`, `</s>`) with the callers' words in one string, and a tokenizer that
reads this string cannot tell them apart. So before rendering, every special-token string inside a caller's words is
replaced by a one-time mark (`guard`); after rendering the text is cut at the marks, and the marked words are encoded
as plain text. Without such words, nearly always, the rendered string is encoded in one piece, exactly as the model's
own tools do. A `raw` prompt is the exception that callers ask for: it is taken verbatim, control tokens included.

The only file that knows the `tokenizers` library, with `detokenizer.py`.
"""

import json
import re
import secrets
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer as Encoder

from gateway.messages import ChatRequest, Message
from gateway.text.template import ChatTemplate, TemplateFault

# A text longer than this many times the longest possible token, window by window, cannot fit and is not encoded at
# all; the slack covers normalisers that shorten text.
_NORMALISER_SLACK = 4


class TokenizerFault(Exception):
    """The folder holds no usable tokenizer; the text says which file and why. A configuration error."""


class PromptTooLong(Exception):
    """The text is so long that no tokenizer could fit it into the window; `least` tokens at the very least."""

    def __init__(self, least: int) -> None:
        super().__init__(least)
        self.least = least


class Tokenizer:
    """One base's tokenizer and chat template. Immutable after construction; safe to use from several threads.

    `encoder` recognises special tokens in text, `plain` never does.
    """

    def __init__(
        self, encoder: Encoder, plain: Encoder, template: ChatTemplate, bos: str | None, eos: str | None
    ) -> None:
        self.encoder = encoder
        self._plain = plain
        self._plain.encode_special_tokens = True
        self._template = template
        self._bos_id = encoder.token_to_id(bos) if bos else None
        self.eos_token_id = encoder.token_to_id(eos) if eos else None
        added = encoder.get_added_tokens_decoder()
        self.special_ids = frozenset(token_id for token_id, token in added.items() if token.special)
        self._control = _any_of(token.content for token in added.values() if token.special)
        self._longest_token_bytes = max((len(token.encode()) for token in encoder.get_vocab()), default=1)

    @classmethod
    def from_folder(cls, folder: Path) -> "Tokenizer":
        """Reads tokenizer.json, tokenizer_config.json, special_tokens_map.json and the chat template.

        Raises TokenizerFault.
        """
        text = _read(folder / "tokenizer.json")
        if text is None:
            raise TokenizerFault(
                f"{folder / 'tokenizer.json'} is missing; a Hugging Face folder with a fast tokenizer is needed"
            )
        try:
            encoder, plain = Encoder.from_str(text), Encoder.from_str(text)
        except Exception as error:  # the library raises bare Exception
            raise TokenizerFault(f"{folder / 'tokenizer.json'}: not a tokenizer: {error}") from error
        for one in (encoder, plain):
            one.no_truncation()
            one.no_padding()
        config = _read_json(folder / "tokenizer_config.json")
        named = _read_json(folder / "special_tokens_map.json")
        bos, eos = (_token_text(config.get(key) or named.get(key)) for key in ("bos_token", "eos_token"))
        source = _read(folder / "chat_template.jinja") or _chosen(config.get("chat_template"))
        try:
            template = ChatTemplate(source, bos=bos, eos=eos)
        except TemplateFault as error:
            raise TokenizerFault(f"{folder}: {error}") from error
        return cls(encoder, plain, template, bos, eos)

    def encode_request(self, request: ChatRequest, window: int) -> list[int]:
        """The prompt's token ids. Raises PromptTooLong, and TemplateFault when the template refuses the messages.

        CPU work that grows with the text: callers take long texts to a thread.
        """
        size = request_chars(request)
        if size > window * self._longest_token_bytes * _NORMALISER_SLACK:
            raise PromptTooLong(size // self._longest_token_bytes)
        if request.raw:
            text = (
                request.prompt if request.prompt is not None else "\n".join(m.content for m in request.messages or ())
            )
            return self._encode_with_bos(text)
        messages = request.messages or (Message("user", request.prompt or ""),)
        return self.encode_messages(messages)

    def encode_messages(self, messages: Iterable[Message]) -> list[int]:
        """Template, then ids; the callers' words stay plain text. Raises TemplateFault."""
        guard = _Guard(self._control)
        text = self._template.render([(m.role, guard.mask(m.content)) for m in messages])
        if not guard.words:
            return self._encode(text)
        ids: list[int] = []
        for piece, is_control_text in guard.pieces(text):
            ids += self._encode_plain(piece) if is_control_text else self._encode(piece)
        return ids

    def encode_text(self, text: str) -> list[int]:
        """Plain text as the model would see it inside a message."""
        return self._encode_plain(text)

    def _encode(self, text: str) -> list[int]:
        if self._template.is_fallback:
            return self._encode_with_bos(text)
        return self.encoder.encode(text, add_special_tokens=False).ids  # as transformers: the template wrote bos

    def _encode_plain(self, text: str) -> list[int]:
        return self._plain.encode(text, add_special_tokens=False).ids

    def _encode_with_bos(self, text: str) -> list[int]:
        """What the post-processor adds, once: a text that already begins with bos gets no second one."""
        ids: list[int] = self.encoder.encode(text, add_special_tokens=True).ids
        return ids[1:] if self._bos_id is not None and ids[:2] == [self._bos_id, self._bos_id] else ids


class _Guard:
    """Takes control-token strings out of callers' words and knows where they were. One request, one guard."""

    def __init__(self, control: re.Pattern[str] | None) -> None:
        self._control = control
        self._nonce = ""
        self.words: list[str] = []

    def mask(self, text: str) -> str:
        """`text` with every control-token string replaced by a mark that nobody can guess."""
        if self._control is None or not self._control.search(text):
            return text
        if not self._nonce:
            self._nonce = str(secrets.randbelow(10**18))  # digits survive upper, lower, trim and tojson in templates

        def mark(match: re.Match[str]) -> str:
            self.words.append(match.group())
            return f"\ufdd0{self._nonce}.{len(self.words) - 1}\ufdd1"

        return self._control.sub(mark, text)

    def pieces(self, rendered: str) -> Iterable[tuple[str, bool]]:
        """The rendered text in order; True marks what must be encoded as plain text."""
        for index, piece in enumerate(re.split(f"\ufdd0{self._nonce}\\.(\\d+)\ufdd1", rendered)):
            if index % 2:
                yield self.words[int(piece)], True
            elif piece:
                yield piece, False


def request_chars(request: ChatRequest) -> int:
    """Length of the callers' words, in characters (a lower bound of bytes): decides whether to leave the event loop."""
    return len(request.prompt or "") + sum(len(message.content) for message in request.messages or ())


def _any_of(tokens: Iterable[str]) -> re.Pattern[str] | None:
    ordered = sorted({token for token in tokens if token}, key=len, reverse=True)
    return re.compile("|".join(map(re.escape, ordered))) if ordered else None


def _chosen(template: Any) -> str | None:
    """`chat_template` is a text, or a list of named ones of which "default" counts."""
    if isinstance(template, list):
        template = next((entry.get("template") for entry in template if entry.get("name") == "default"), None)
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
