"""What single tokens say: their bytes and their text, for log-probabilities.

A token is not always text: a byte-level vocabulary cuts characters in half, and others spell single bytes `<0xE2>` and
spaces `▁`. How a vocabulary spells is read from its decoder. `data` is exact, so joined tokens give the answer's bytes;
`text` shows half characters as U+FFFD.
"""

import functools
import json
import re
from typing import Any, Final

from tokenizers import Tokenizer as Encoder

_BYTE: Final = re.compile(r"<0x([0-9A-Fa-f]{2})>")
_SPACE: Final = "\u2581"
_REMEMBERED: Final = 8192


class TokenTexts:
    """Of one vocabulary; safe to use from several threads. Remembers the most recent tokens."""

    def __init__(self, encoder: Encoder) -> None:
        self._encoder = encoder
        self._added = {token_id: token.content for token_id, token in encoder.get_added_tokens_decoder().items()}
        kinds = set(_kinds(json.loads(encoder.decoder.__getstate__()) if encoder.decoder else None))
        self._spelled = _byte_spelling() if "ByteLevel" in kinds else None
        self._has_bytes = "ByteFallback" in kinds
        self._has_spaces = bool(kinds & {"Metaspace", _SPACE})
        self.of = functools.lru_cache(_REMEMBERED)(self._of)

    def _of(self, token_id: int) -> tuple[str, bytes]:
        data = self._data(token_id)
        return data.decode("utf-8", "replace"), data

    def _data(self, token_id: int) -> bytes:
        """Nothing for an id that only pads the model's matrix."""
        if token_id in self._added:
            return self._added[token_id].encode()
        token = self._encoder.id_to_token(token_id) or ""
        if self._spelled is not None:
            known = [self._spelled.get(character) for character in token]
            return token.encode() if None in known else bytes(byte for byte in known if byte is not None)
        if self._has_bytes and (byte := _BYTE.fullmatch(token)):
            return bytes.fromhex(byte[1])
        return (token.replace(_SPACE, " ") if self._has_spaces else token).encode()


class SpelledTokens(dict[int, bytes]):
    """What each token of a byte-level vocabulary adds to an answer: always the same bytes, whatever stands around it.
    Special tokens add nothing. Fills as tokens are met; safe to use from several threads.
    """

    def __init__(self, encoder: Encoder) -> None:
        super().__init__()
        self._encoder = encoder
        self._special = {id_ for id_, token in encoder.get_added_tokens_decoder().items() if token.special}
        self._bytes = _byte_spelling()

    @classmethod
    def of(cls, encoder: Encoder) -> "SpelledTokens | None":
        """None for a vocabulary that is not spelled in bytes alone."""
        decoder = json.loads(encoder.decoder.__getstate__()) if encoder.decoder else None
        return cls(encoder) if isinstance(decoder, dict) and decoder.get("type") == "ByteLevel" else None

    def __missing__(self, token_id: int) -> bytes:
        token = "" if token_id in self._special else self._encoder.id_to_token(token_id) or ""
        known = [self._bytes.get(character) for character in token]
        data = self[token_id] = token.encode() if None in known else bytes(byte for byte in known if byte is not None)
        return data


def _kinds(decoder: Any) -> list[str]:
    """The types of a decoder and its parts, and the strings that it replaces."""
    if not isinstance(decoder, dict):
        return []
    kinds = [str(decoder.get("type"))]
    if isinstance(pattern := decoder.get("pattern"), dict):
        kinds += map(str, pattern.values())
    for part in decoder.get("decoders") or ():
        kinds += _kinds(part)
    return kinds


def _byte_spelling() -> dict[str, int]:
    """GPT-2's spelling: printable Latin-1 bytes stand for themselves, the others for characters from U+0100 on."""
    plain = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [byte for byte in range(256) if byte not in set(plain)]
    return {**{chr(byte): byte for byte in plain}, **{chr(256 + place): byte for place, byte in enumerate(others)}}
