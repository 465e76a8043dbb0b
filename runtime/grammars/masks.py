"""The words that grammars forbid get minus infinity, before anything else is done to the logits.

Before the model runs, each constrained row says which words may come next: a row that allows none costs no step. After
it, what is forbidden is gone for everything that follows: logit_bias, penalties, filters, the draw, and the
log-probabilities, which are then those of the model among the words it was allowed to say (as in vLLM). Rows without a
grammar are not touched.
"""

from collections.abc import Sequence
from typing import Self

import torch

from runtime.batch import Row
from runtime.errors import GrammarStuck, RunnerMisused
from runtime.grammars.compiler import Masks, MatcherConstraint


class StepMasks:
    """One step's masks. lines: which of the sampled rows they are for; forbidden: [lines, vocab], True to forbid."""

    def __init__(self, lines: list[int], forbidden: torch.Tensor) -> None:
        self._lines, self._forbidden = lines, forbidden

    @classmethod
    def of(cls, rows: Sequence[Row], vocab_size: int, masks: Masks) -> Self | None:
        """For the rows that sample; None when none of them has a grammar. Raises GrammarStuck."""
        lines = [line for line, row in enumerate(rows) if row.constraint is not None]
        if not lines:
            return None
        constraints = [_matcher(rows[line]) for line in lines]
        allowed = masks.allowed_words(constraints, vocab_size)
        problems = {rows[line].sequence_id: one.problem for line, one in zip(lines, constraints, strict=True)}
        reasons = {sequence_id: problem for sequence_id, problem in problems.items() if problem is not None}
        if reasons:
            raise GrammarStuck(reasons)
        return cls(lines, torch.from_numpy(~allowed))

    def apply(self, logits: torch.Tensor) -> None:
        """In place; logits is [sampled rows, vocab]."""
        forbidden = self._forbidden.to(logits.device)
        for line, words in zip(self._lines, forbidden, strict=True):
            logits[line].masked_fill_(words, float("-inf"))


def _matcher(row: Row) -> MatcherConstraint:
    if not isinstance(row.constraint, MatcherConstraint):
        raise RunnerMisused(f"sequence {row.sequence_id} has a constraint of another maker")
    return row.constraint
