"""Multipart bodies as a stream of parts: nothing is kept here but the headers of the part at hand.

Shape: `read_parts` yields `Part`s; the caller must read each part's `chunks()` (or drop it) before the next one comes.
The body is pulled from the connection only as fast as the caller reads, so a caller that stops early has consumed no
more than it looked at. Foreign exceptions of python-multipart end here.
"""

from collections import deque
from collections.abc import AsyncIterator
from typing import Any, Final

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header

from gateway.errors import BadInput

MAX_PARTS: Final = 16
MAX_HEADERS: Final = 16
MAX_HEADER_BYTES: Final = 4096
_END: Final = None


class Part:
    """One part. `name` is its field's name; the file name is the sender's word and of no consequence here."""

    def __init__(self, name: str, reader: "_Reader") -> None:
        self.name = name
        self._reader = reader

    async def chunks(self) -> AsyncIterator[bytes]:
        """The part's bytes as they arrive. Raises BadInput when the body breaks off or is malformed."""
        while (event := await self._reader.next_event()) is not _END:
            if isinstance(event, Part):
                raise BadInput("a multipart part began inside another")
            yield event

    async def text(self, max_bytes: int) -> str:
        """The whole part as UTF-8. Raises BadInput when it is longer or not UTF-8."""
        data = bytearray()
        async for chunk in self.chunks():
            data += chunk
            if len(data) > max_bytes:
                raise BadInput(f"part {self.name!r} must have at most {max_bytes} bytes", param=self.name)
        try:
            return data.decode("utf-8")
        except UnicodeDecodeError as error:
            raise BadInput(f"part {self.name!r} is not UTF-8 text", param=self.name) from error


async def read_parts(content_type: str, body: AsyncIterator[bytes]) -> AsyncIterator[Part]:
    """The parts of a `multipart/form-data` body, in order. Raises BadInput."""
    reader = _Reader(_boundary(content_type), body)
    count = 0
    while True:
        event = await reader.next_event(at_end_ok=True)
        if event is _END and reader.exhausted:
            return
        if not isinstance(event, Part):
            continue  # the rest of a part that the caller did not read
        count += 1
        if count > MAX_PARTS:
            raise BadInput(f"the multipart body has more than {MAX_PARTS} parts")
        yield event


def _boundary(content_type: str) -> bytes:
    kind, options = parse_options_header(content_type.encode("latin-1", "replace"))
    boundary: bytes = options.get(b"boundary", b"")
    if kind != b"multipart/form-data" or not 1 <= len(boundary) <= 200:
        raise BadInput("send the files as multipart/form-data with a boundary in the Content-Type header")
    return boundary


class _Reader:
    """Turns the parser's callbacks into a queue of events; the queue never holds more than one chunk's worth."""

    def __init__(self, boundary: bytes, body: AsyncIterator[bytes]) -> None:
        self._body = body
        self._events: deque[Part | bytes | None] = deque()
        self._field = bytearray()
        self._value = bytearray()
        self._disposition = b""
        self._finished = False
        callbacks: Any = {
            "on_part_begin": self._on_part_begin,
            "on_header_field": lambda data, start, end: self._field.extend(data[start:end]),
            "on_header_value": lambda data, start, end: self._value.extend(data[start:end]),
            "on_header_end": self._on_header_end,
            "on_headers_finished": self._on_headers_finished,
            "on_part_data": lambda data, start, end: self._events.append(data[start:end]),
            "on_part_end": lambda: self._events.append(_END),
            "on_end": self._on_end,
        }
        try:
            self._parser = MultipartParser(
                boundary, callbacks, max_header_count=MAX_HEADERS, max_header_size=MAX_HEADER_BYTES
            )
        except FormParserError as error:
            raise BadInput("the multipart boundary is not usable") from error

    @property
    def exhausted(self) -> bool:
        """The closing boundary was read and everything before it handed out."""
        return self._finished and not self._events

    async def next_event(self, *, at_end_ok: bool = False) -> Part | bytes | None:
        """A new part, a piece of the current one, or None at the end of a part (and of the body, if `at_end_ok`)."""
        while not self._events:
            if self._finished:
                if at_end_ok:
                    return _END
                raise BadInput("the multipart body ended unexpectedly")
            try:
                chunk = await anext(self._body)
            except StopAsyncIteration:
                raise BadInput("the multipart body broke off before its closing boundary") from None
            try:
                self._parser.write(chunk)
            except FormParserError as error:
                raise BadInput(f"the multipart body is malformed: {error}") from error
        return self._events.popleft()

    def _on_part_begin(self) -> None:
        self._disposition = b""

    def _on_header_end(self) -> None:
        if bytes(self._field).strip().lower() == b"content-disposition":
            self._disposition = bytes(self._value)
        self._field.clear()
        self._value.clear()

    def _on_headers_finished(self) -> None:
        _, options = parse_options_header(self._disposition)
        name: bytes | None = options.get(b"name")
        if name is None:
            raise BadInput("each multipart part needs a Content-Disposition header with a name")
        self._events.append(Part(name.decode("utf-8", "replace"), self))

    def _on_end(self) -> None:
        self._finished = True
