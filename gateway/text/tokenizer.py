"""Text to token ids for one base, with one rule that nothing may break: what a caller wrote never becomes control.

A chat template mixes control tokens (`<|user|>`, `</s>`) with the callers' words in one string, and a tokenizer that
reads this string cannot tell them apart. So before rendering, every special-token string inside a caller's words is
replaced by a one-time mark (`guard.py`); after rendering the text is cut at the marks, and the marked words are encoded
as plain text. Without such words, nearly always, the rendered string is encoded in one piece, exactly as the model's
own tools do. Tools are callers' words too, down to the keys of their schemas, and the marks of tool calls are control
tokens even where a vocabulary does not call them special. A `raw` prompt is the exception that callers ask for: it is
taken verbatim, control tokens included.

The only file that knows the `tokenizers` library, with `detokenizer.py`.
"""

import re
from collections.abc import Iterable
from pathlib import Path

from tokenizers import AddedToken
from tokenizers import Tokenizer as Encoder

from gateway.messages import ChatRequest, Message, Tool
from gateway.text.guard import Guard
from gateway.text.model_folder import TokenizerFault as TokenizerFault
from gateway.text.model_folder import read_model_folder
from gateway.text.template import ChatTemplate, TemplateFault
from gateway.text.token_texts import SpelledTokens
from gateway.text.tool_calls.base import FormatName, Parser
from gateway.text.tool_calls.formats import choose_format
from gateway.text.turns import schemas, turns

# A text longer than this many times the longest possible token, window by window, cannot fit and is not encoded at
# all; the slack covers normalisers that shorten text.
_NORMALISER_SLACK = 4


class NoToolCalls(Exception):
    """The base cannot be shown tools, or nobody could read its calls; the text says which."""


class PromptTooLong(Exception):
    """The text is so long that no tokenizer could fit it into the window; `least` tokens at the very least."""

    def __init__(self, least: int) -> None:
        super().__init__(least)
        self.least = least


class Tokenizer:
    """One base's tokenizer and chat template. Immutable after construction; safe to use from several threads.

    `encoder` recognises special tokens in text, `plain` never does. `spelled`: see `Detokenizer`. `tool_format`: how
    the base calls functions, with `mark_ids`, the tokens of its own that this takes.
    """

    def __init__(
        self,
        encoder: Encoder,
        plain: Encoder,
        template: ChatTemplate,
        bos: str | None,
        eos: str | None,
        tool_format: FormatName | None = None,
    ) -> None:
        self.encoder = encoder
        self._plain = plain
        self._template = template
        self._bos_id = encoder.token_to_id(bos) if bos else None
        self.eos_token_id = encoder.token_to_id(eos) if eos else None
        self.tool_format = choose_format(template.source, tool_format) if template.knows_tools else None
        added = {token.content: (token_id, token) for token_id, token in encoder.get_added_tokens_decoder().items()}
        special = [text for text, (_, token) in added.items() if token.special]
        self.special_ids = frozenset(added[text][0] for text in special)
        marks = [text for text in self.tool_format.tokens if text in added] if self.tool_format else []
        self.mark_ids = {text: added[text][0] for text in marks}
        plain.add_special_tokens([AddedToken(text, normalized=False) for text in marks])
        plain.encode_special_tokens = True
        self._control = _any_of([*special, *marks])
        self.spelled = SpelledTokens.of(encoder)
        self._longest_token_bytes = max((len(token.encode()) for token in encoder.get_vocab()), default=1)

    @classmethod
    def from_folder(cls, folder: Path, tool_format: FormatName | None = None) -> "Tokenizer":
        """`tool_format` None: the one that the chat template teaches. Raises TokenizerFault."""
        files = read_model_folder(folder)
        try:
            encoder, plain = Encoder.from_str(files.tokenizer), Encoder.from_str(files.tokenizer)
        except Exception as error:  # the library raises bare Exception
            raise TokenizerFault(f"{folder / 'tokenizer.json'}: not a tokenizer: {error}") from error
        for one in (encoder, plain):
            one.no_truncation()
            one.no_padding()
        try:
            template = ChatTemplate(files.template, bos=files.bos, eos=files.eos, tool_source=files.tool_template)
        except TemplateFault as error:
            raise TokenizerFault(f"{folder}: {error}") from error
        return cls(encoder, plain, template, files.bos, files.eos, tool_format)

    def encode_request(self, request: ChatRequest, window: int) -> list[int]:
        """The prompt's token ids. Raises PromptTooLong, TemplateFault when the template refuses the messages, and
        NoToolCalls.

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
        self._check_tools(request)
        return self.encode_messages(messages, request.offered)

    def encode_messages(self, messages: Iterable[Message], tools: tuple[Tool, ...] = ()) -> list[int]:
        """Template, then ids; the callers' words stay plain text. Raises TemplateFault."""
        guard = Guard(self._control)
        said = turns(messages, guard, self.tool_format.call_id) if self.tool_format else turns(messages, guard)
        text = self._template.render(said, schemas(tools, guard) or None)
        if not guard.words:
            return self._encode(text)
        ids: list[int] = []
        for piece, is_control_text in guard.pieces(text):
            if is_control_text:
                ids += self._encode_plain(piece)
            else:
                ids += self.encoder.encode(piece, add_special_tokens=False).ids if ids else self._encode(piece)
        return ids

    def call_parser(self, request: ChatRequest) -> Parser | None:
        """What finds the calls in one answer; None when there can be none. Pieces of calls for who takes pieces."""
        if self.tool_format is None or not request.offered:
            return None
        eager = request.stream and request.dialect != "workers_ai"
        return self.tool_format.parser(request.offered, eager=eager, at_most_one=not request.tool_choice.parallel)

    def call_marks(self, request: ChatRequest) -> dict[int, str]:
        """The tokens that this parser must see, spelled."""
        if self.tool_format is None or not request.offered:
            return {}
        return {self.mark_ids[text]: text for text in self.tool_format.marks if text in self.mark_ids}

    def encode_text(self, text: str) -> list[int]:
        """Plain text as the model would see it inside a message."""
        return self._encode_plain(text)

    def _check_tools(self, request: ChatRequest) -> None:
        """What would be dropped without a word is refused."""
        called = any(message.tool_calls for message in request.messages or ())
        if (request.offered or called) and not self._template.knows_tools:
            raise NoToolCalls("this model's chat template does not know tools; name another model or send no tools")
        if request.offered and self.tool_format is None:
            raise NoToolCalls(
                "how this model calls functions is not known here; name another model, or have the operator set "
                "tool_format"
            )

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


def request_chars(request: ChatRequest) -> int:
    """Length of the callers' words, in characters (a lower bound of bytes): decides whether to leave the event loop."""
    total = len(request.prompt or "")
    for message in request.messages or ():
        total += len(message.content) + len(message.tool_call_id or "") + len(message.name or "")
        total += sum(len(call.id) + len(call.name) + len(call.arguments) for call in message.tool_calls)
    return total + sum(len(tool.name) + len(tool.description) + len(tool.parameters) for tool in request.offered)


def _any_of(tokens: Iterable[str]) -> re.Pattern[str] | None:
    ordered = sorted({token for token in tokens if token}, key=len, reverse=True)
    return re.compile("|".join(map(re.escape, ordered))) if ordered else None
