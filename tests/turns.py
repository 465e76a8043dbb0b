"""How often to let the event loop turn before a task is cancelled, when every moment of it is to be met once.

One by one at first, where the awaits of the code lie; then ever longer, because a wait for a disk takes as many turns
as it likes, and to meet each of them would take a slow disk's time squared.
"""

from collections.abc import Iterator


def growing_turns() -> Iterator[int]:
    """1, 2, 3 .. 50, then a fifth more each time, up to some 10 million: more than any test waits."""
    yield from range(1, 50)
    turns = 50.0
    while turns < 1e7:
        yield int(turns)
        turns *= 1.2
