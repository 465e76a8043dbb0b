"""What a runtime refuses at the door, and when it says to come back. No torch, no clock: times are passed in.

The gateway has checked a caller's numbers against the contract; this is the runtime's own line of defence, against
what no device could compute and what would never end.
"""

import math
from collections.abc import Callable
from typing import Final

from runtime.protocol import (
    MAX_LOGIT_BIASES,
    MAX_PRIORITY,
    MAX_STOP_TOKENS,
    MAX_TOP_LOGPROBS,
    MAX_WEIGHT,
    MIN_WEIGHT,
    Failure,
    ModelInfo,
    SamplingParams,
    Submit,
)

LONGEST_RETRY_S: Final = 60


def unacceptable(
    request: Submit, model: ModelInfo, fits: Callable[[int], bool], too_large: Callable[[int], Failure | None]
) -> Failure | None:
    """Why this sequence can never run, whatever is free; None when it can.

    fits: whether a sequence of this length fits the whole cache. too_large: the failure of an adapter of this rank.
    """
    if not request.token_ids or not 0 <= min(request.token_ids) <= max(request.token_ids) < model.vocab_size:
        return Failure("internal", f"token ids must be 0 .. {model.vocab_size - 1}, and at least one")
    problem = _sampling_problem(request.sampling, model.vocab_size)
    if problem is not None:
        return Failure("internal", problem)
    if abs(request.priority) > MAX_PRIORITY or not MIN_WEIGHT <= request.weight <= MAX_WEIGHT:
        limits = f"priority {-MAX_PRIORITY} .. {MAX_PRIORITY}, weight {MIN_WEIGHT:g} .. {MAX_WEIGHT:g}"
        return Failure("internal", f"out of range: {limits}")
    if not request.timeout_s > 0:
        return Failure("timeout", "the deadline had passed on arrival")
    length = len(request.token_ids) + request.sampling.max_tokens
    if length > model.max_sequence_tokens:
        limit = model.max_sequence_tokens
        return Failure("too_long", f"prompt and answer take up to {length} tokens; the model takes {limit}")
    if not fits(length):
        return Failure("too_long", f"prompt and answer take up to {length} tokens; the cache is smaller")
    return None if request.adapter is None else too_large(request.adapter.rank)


def _sampling_problem(sampling: SamplingParams, vocab_size: int) -> str | None:
    numbers = (sampling.temperature, sampling.top_p, sampling.repetition_penalty)
    if not all(map(math.isfinite, (*numbers, sampling.frequency_penalty, sampling.presence_penalty))):
        return "sampling parameters must be finite numbers"
    if sampling.max_tokens < 1 or sampling.top_k < 0 or sampling.temperature < 0:
        return "max_tokens must be at least 1, top_k and temperature at least 0"
    if not 0 < sampling.top_p <= 1 or sampling.repetition_penalty <= 0:
        return "top_p must be in (0, 1], repetition_penalty above 0"
    if not 0 <= sampling.min_p <= 1:
        return "min_p must be in [0, 1]"
    if len(sampling.logit_bias) > MAX_LOGIT_BIASES or len(sampling.stop_token_ids) > MAX_STOP_TOKENS:
        return f"at most {MAX_LOGIT_BIASES} entries of logit_bias and {MAX_STOP_TOKENS} stop tokens"
    if not all(0 <= token < vocab_size and math.isfinite(bias) for token, bias in sampling.logit_bias):
        return f"logit_bias takes finite numbers for token ids 0 .. {vocab_size - 1}"
    if sampling.top_logprobs is not None and not 0 <= sampling.top_logprobs <= MAX_TOP_LOGPROBS:
        return f"top_logprobs must be 0 .. {MAX_TOP_LOGPROBS}"
    return None


class QueueSpeed:
    """How fast sequences have been finishing of late."""

    def __init__(self) -> None:
        self._seconds_per_sequence = 0.0
        self._last_at: float | None = None

    def finished(self, now: float) -> None:
        """One more answer is complete."""
        if self._last_at is not None:
            self._seconds_per_sequence += 0.1 * (now - self._last_at - self._seconds_per_sequence)
        self._last_at = now

    def overloaded(self, num_waiting: int) -> Failure:
        """Trying again helps when about half of the queue has drained."""
        wait_s = math.ceil(self._seconds_per_sequence * num_waiting / 2)
        return Failure("overloaded", "the queue of this runtime is full", float(min(max(wait_s, 1), LONGEST_RETRY_S)))
