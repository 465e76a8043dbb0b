"""Token ids to text as they come: never half a character, never past a stop string.

`Detokenizer` holds back bytes until they make whole characters: an emoji split over four tokens comes out once, whole.
Bytes that never become a character before the end are dropped. `StopStrings` holds back the longest tail that could
still grow into a stop string. The texts of all calls joined are the answer.
"""

from codecs import utf_8_decode
from collections.abc import Iterable, Mapping, Sequence
from typing import Final

from tokenizers import Tokenizer as Encoder
from tokenizers.decoders import DecodeStream

from gateway.text.token_texts import SpelledTokens

_BROKEN: Final = "\ufffd"


class Detokenizer:
    """The text of one sequence; special tokens leave no trace, except those that are `kept`: (id, its text).

    `spelled` are the tokens where each has bytes of its own: joining them takes a fifth of the library's time, which
    reads the last few tokens twice at every step.
    """

    def __init__(
        self, encoder: Encoder, kept: Mapping[int, str] | None = None, spelled: SpelledTokens | None = None
    ) -> None:
        self._encoder = encoder
        self._kept = kept or {}
        self._spelled = spelled
        self._rest = b""  # the bytes of half a character
        self._held = ""  # broken ones: shown only when something comes behind them
        self._stream = DecodeStream(skip_special_tokens=True)

    def push(self, token_ids: Iterable[int]) -> str:
        """The text that became certain with these tokens; often empty."""
        if self._spelled is None:
            return self._decoded(token_ids)
        if not self._kept:
            return self._joined(b"".join([self._spelled[token_id] for token_id in token_ids]))
        parts = [self._kept.get(token_id) or self._joined(self._spelled[token_id]) for token_id in token_ids]
        return "".join(parts)

    def _joined(self, data: bytes) -> str:
        data = self._rest + data
        text, used = utf_8_decode(data, "replace", False)
        self._rest = data[used:]
        if self._held or text.endswith(_BROKEN):
            text = self._held + text
            self._held = text[len(text.rstrip(_BROKEN)) :]
            return text.rstrip(_BROKEN)
        return text

    def _decoded(self, token_ids: Iterable[int]) -> str:
        parts = []
        for token_id in token_ids:
            if token_id in self._kept:
                parts.append(self._kept[token_id])
                continue
            try:
                part = self._stream.step(self._encoder, token_id)
            except Exception:  # the library raises bare Exception when broken bytes unsettle what it decoded before
                self._stream = DecodeStream(skip_special_tokens=True)
                part = self._stream.step(self._encoder, token_id)
            if part:
                parts.append(part)
        return "".join(parts)


class StopStrings:
    """Cuts a text that comes in pieces before the first stop string in it."""

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = tuple(stop for stop in stops if stop)
        self._held = ""
        self.met: str | None = None  # the one that ended the text

    @property
    def matched(self) -> bool:
        """Whether the text has ended."""
        return self.met is not None

    def push(self, text: str) -> str:
        """What may be shown of the text so far and was not shown yet; sets `met` and shows nothing more after."""
        if not self._stops or self.matched:
            return "" if self.matched else text
        self._held += text
        found = [(at, stop) for stop in self._stops if (at := self._held.find(stop)) >= 0]
        if found:
            first, self.met = min(found)
            return self._take(first)
        return self._take(len(self._held) - self._suspect())

    def flush(self) -> str:
        """The end of the answer: what was held back is no stop string after all."""
        return "" if self.matched else self._take(len(self._held))

    def _take(self, count: int) -> str:
        shown, self._held = self._held[:count], self._held[count:]
        return shown

    def _suspect(self) -> int:
        """Length of the longest tail of the held text that begins a stop string."""
        for length in range(min(len(self._held), max(map(len, self._stops)) - 1), 0, -1):
            tail = self._held[-length:]
            if any(stop.startswith(tail) for stop in self._stops):
                return length
        return 0
