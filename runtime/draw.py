"""Draws from many weights at once: inverse CDF in the order of the vocabulary, in two levels.

A running sum in float64 over a whole vocabulary costs more than the products of a small model's step: it writes eight
bytes a word. So the words are summed in blocks first, the block is found among the few sums, and only that block is
summed word by word. Weights are fp32 in [0, 1] and sums of more than a block float64, so that where a boundary lies
depends on the rounding of single weights (1e-7) and not on how many words there are. Measured on two cores, 32 rows of
49152 words: 1.0 ms with the exponentials, where softmax and cumsum in float64 took 2.5 to 15.
"""

from collections.abc import Sequence
from typing import Final

import torch

# exp of less is a denormal number, for which processors take a hundred times as long: no share worth drawing.
LEAST_SCORE: Final = -87.0

# Near the square root of a vocabulary, so that both levels are short.
BLOCK_WORDS: Final = 256


def exponentials(scores: torch.Tensor) -> torch.Tensor:
    """exp(scores) for [rows, vocab] with a maximum of 0, padded by words of weight 0 to whole blocks."""
    rows, vocab = scores.shape
    padded = scores.new_empty((rows, vocab + -vocab % BLOCK_WORDS))
    torch.exp(scores, out=padded[:, :vocab])
    padded[:, vocab:] = 0
    return padded


def draw(weights: torch.Tensor, uniforms: Sequence[float]) -> list[int]:
    """The word of each row whose share of the row's weight holds the number in [0, 1].

    weights: [rows, whole blocks], each row with some weight. Words of weight 0 are never drawn, not even by 0 or 1.
    """
    rows = weights.shape[0]
    blocks = weights.view(rows, -1, BLOCK_WORDS)
    upto = blocks.sum(-1).cumsum(-1, dtype=torch.float64)
    target = torch.tensor(uniforms, dtype=torch.float64, device=weights.device)[:, None] * upto[:, -1:]
    block = _place(upto, target)
    before = torch.where(block > 0, upto.gather(1, (block - 1).clamp_(min=0)), 0.0)
    words = blocks[torch.arange(rows, device=weights.device), block[:, 0]]
    inside = words.cumsum(-1, dtype=torch.float64)
    found: list[int] = (block * BLOCK_WORDS + _place(inside, target - before)).squeeze(1).tolist()
    return found


def draw_small(weights: torch.Tensor, uniforms: Sequence[float]) -> torch.Tensor:
    """As `draw`, for a few words a row, in any number: [rows, 1], the place of each."""
    upto = weights.cumsum(-1, dtype=torch.float64)
    share = torch.tensor(uniforms, dtype=torch.float64, device=weights.device)[:, None]
    return _place(upto, share * upto[:, -1:])


def total_weight(scores: torch.Tensor) -> torch.Tensor:
    """[rows, 1] float64: the sum of exp(scores) for [rows, vocab] with a maximum of 0."""
    blocks = exponentials(scores).view(scores.shape[0], -1, BLOCK_WORDS)
    return blocks.sum(-1).sum(-1, keepdim=True, dtype=torch.float64)


def _place(upto: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """[rows, 1]: the first place whose running sum is above the target; what has no weight is skipped at both ends."""
    found = torch.searchsorted(upto, target, right=True)
    last = torch.searchsorted(upto, upto[:, -1:].contiguous())
    return torch.minimum(found, last)
