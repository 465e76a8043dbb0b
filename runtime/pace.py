"""How many new tokens a step may take on this device, learnt from how long steps last. No clock: times are passed in.

A large model on a small CPU computes tens of prompt tokens a second; a step of a thousand would stand still for a
minute, for everybody, and look hung. So prompts are cut finer where steps are slow, and as coarse as configured where
they are fast.
"""

from typing import Final

FIRST_TOKENS: Final = 256
LEAST_TOKENS: Final = 16


class StepPace:
    """`budget` new tokens for the next step, at most `max_tokens`."""

    def __init__(self, max_tokens: int, target_s: float) -> None:
        self._max_tokens, self._target_s = max_tokens, target_s
        self.budget = min(max_tokens, FIRST_TOKENS)

    def took(self, tokens: int, seconds: float) -> None:
        """A step of `tokens` new tokens lasted `seconds`."""
        if seconds > self._target_s:
            fitting = int(tokens * self._target_s / seconds)
            self.budget = min(self.budget, max(fitting, LEAST_TOKENS), self._max_tokens)
        elif 2 * tokens >= self.budget and 2 * seconds < self._target_s:
            self.budget = min(2 * self.budget, self._max_tokens)
