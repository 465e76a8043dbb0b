"""The head of a request that asks to change the protocol, without that wish.

A server may always answer in the protocol that it was asked in. Java's HttpClient asks every `http://` server for
HTTP/2 in this way at its first request, body and all; the parser takes what follows such a head for another protocol.
"""

from collections.abc import Iterable
from typing import Final

_WISH: Final = frozenset({b"upgrade", b"http2-settings"})


def plain_head(method: bytes, url: bytes, version: str, headers: Iterable[tuple[bytes, bytes]]) -> bytes:
    """`headers` as the parser told them: names in lower case, values without line ends."""
    lines = [b"%b %b HTTP/%b\r\n" % (method, url, version.encode())]
    for name, value in headers:
        if name == b"connection":
            kept = [token for token in value.split(b",") if token.strip().lower() not in _WISH]
            value = b",".join(kept).strip()
        if name not in _WISH and (value or name != b"connection"):
            lines.append(b"%b: %b\r\n" % (name, value))
    return b"".join([*lines, b"\r\n"])
