"""How many bytes of request bodies may be in memory at once, over all callers. What does not fit is refused, counted.

Without it, many callers with bodies just below the limit of one would fill the memory together. A body takes its
announced length, or the whole limit when it announces none, from before it is read until its answer is complete.
"""

from collections.abc import Iterator
from contextlib import contextmanager

from gateway.errors import OverCapacity


class BodyBudget:
    """`used_bytes` and `refused` may be read at any time. One event loop."""

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes = max_bytes
        self.used_bytes = 0
        self.refused = 0

    @contextmanager
    def reserve(self, announced: str | None, max_body_bytes: int) -> Iterator[None]:
        """Holds the bytes of one body. `announced` is its Content-Length. Raises OverCapacity.

        A body is let in when nothing else is held, or a budget below the limit of one body would let none in.
        """
        known = announced is not None and announced.isascii() and announced.isdigit() and len(announced) < 19
        size = min(int(announced), max_body_bytes) if known and announced else max_body_bytes
        if self.used_bytes and self.used_bytes + size > self.max_bytes:
            self.refused += 1
            raise OverCapacity("too much is being sent at the moment; try again", retry_after_s=1)
        self.used_bytes += size
        try:
            yield
        finally:
            self.used_bytes -= size
