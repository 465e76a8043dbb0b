"""Whether a sequence ends with the token that it just said, and how. No torch, no clock.

End tokens and stop tokens are not part of the answer. A complete answer of a grammar ends with its last token, without
another step to say so; its end token ends it even with `ignore_eos`, for nothing could follow.
"""

from collections.abc import Collection
from typing import Final, NamedTuple

from runtime.protocol import Failure, FinishReason
from runtime.sequence import Sequence


class Ending(NamedTuple):
    """shown: whether the token belongs to the answer."""

    reason: FinishReason | None
    shown: bool
    failure: Failure | None = None


_GOES_ON: Final = Ending(None, True)


def ending(sequence: Sequence, token: int, eos_token_ids: Collection[int]) -> Ending:
    """`token` is in `sequence.tokens` already; its constraint takes it here."""
    sampling, constraint = sequence.sampling, sequence.constraint
    if constraint is not None:
        constraint.take(token)
        if constraint.problem is not None:
            return Ending("error", False, grammar_failure(constraint.problem))
    is_eos = token in eos_token_ids and (constraint is not None or not sampling.ignore_eos)
    if is_eos or token in sampling.stop_token_ids:
        return Ending("stop", False)
    if constraint is not None and constraint.done:
        return Ending("stop", True)
    if len(sequence.tokens) - sequence.num_pending - sequence.prompt_tokens < sampling.max_tokens:
        return _GOES_ON
    return Ending("length", True)


def grammar_failure(problem: str) -> Failure:
    """`problem`: a clause for the caller."""
    return Failure("grammar", problem)
