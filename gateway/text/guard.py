"""Callers' words inside a rendered prompt, so that control-token strings in them can be told from the template's own.

Before rendering, every such string in a caller's words is replaced by a one-time mark; after rendering the text is cut
at the marks. Nothing is changed in words without them, which is nearly always.
"""

import re
import secrets
from collections.abc import Iterable
from typing import Any


class Guard:
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

    def mask_all(self, value: Any) -> Any:
        """A decoded JSON value with every text in it masked, keys too."""
        if isinstance(value, str):
            return self.mask(value)
        if isinstance(value, list):
            return [self.mask_all(item) for item in value]
        if isinstance(value, dict):
            return {self.mask(key): self.mask_all(item) for key, item in value.items()}
        return value

    def pieces(self, rendered: str) -> Iterable[tuple[str, bool]]:
        """The rendered text in order; True marks what must be encoded as plain text."""
        for index, piece in enumerate(re.split(f"\ufdd0{self._nonce}\\.(\\d+)\ufdd1", rendered)):
            if index % 2:
                yield self.words[int(piece)], True
            elif piece:
                yield piece, False
