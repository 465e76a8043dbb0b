"""The body of an answer that is told in pieces, for who sends many: straight to the connection, as one chunk of HTTP.

ASGI's `send` takes a message, passes every layer and is awaited, which costs a piece more than its write. What it
watches over is looked at here too: who finds that something is out of the ordinary says no, and the piece goes the
usual way. Where the server is another one, there is no such thing in the scope, and the usual way is the only one.
"""

from typing import Final

from uvicorn.protocols.http.httptools_impl import RequestResponseCycle

SCOPE_KEY: Final = "lorikeet.open_body"


class OpenBody:
    """Of one request."""

    def __init__(self, cycle: RequestResponseCycle) -> None:
        self._cycle = cycle

    def write(self, piece: bytes) -> bool:
        """False, and nothing is done, before the head, after the end, without a caller, and while one reads slowly."""
        cycle = self._cycle
        if not cycle.chunked_encoding or cycle.flow.write_paused or cycle.disconnected or cycle.response_complete:
            return False
        if piece:  # an empty chunk is the end
            cycle.transport.write(b"%x\r\n%b\r\n" % (len(piece), piece))
        return True
