"""Time for several processes, one after the other: what one does not use is there for those that follow."""

import time
from collections.abc import Callable
from typing import Final

# What a process takes to load torch, open the device and measure its copy speed.
START_S: Final = 7.0
LEAST_S: Final = 2.0


class Shares:
    """within: seconds for all `count` processes together."""

    def __init__(self, within: float, count: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock, self._end, self._left = clock, clock() + within, count

    def next(self) -> float:
        """Seconds for which the next process may measure, beyond its start."""
        share = (self._end - self._clock()) / max(1, self._left)
        self._left -= 1
        return max(LEAST_S, share - START_S)
