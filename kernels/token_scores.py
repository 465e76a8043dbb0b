"""Log-probabilities of the tokens that were drawn and of the best alternatives, left on the device until they are asked
for.

    own[r]          = x[r, token[r]] - log sum_i exp(x[r, i])
    values, words   = the `most` largest of a row, in falling order

    logits  [rows, vocab]   as they left the model, for the rows that ask: few, so torch's own kernels do
"""

from typing import NamedTuple

import torch


class TokenScores(NamedTuple):
    """own: [rows] fp32. values: [rows, most] fp32; words: [rows, most] int64."""

    own: torch.Tensor
    values: torch.Tensor
    words: torch.Tensor


def token_scores(logits: torch.Tensor, tokens: torch.Tensor, most: int) -> TokenScores:
    """tokens: [rows] int64, those of -1 get any number. Nothing is read on the host. Raises ValueError."""
    if logits.dim() != 2 or tokens.shape != logits.shape[:1] or tokens.dtype != torch.int64 or most < 0:
        raise ValueError(f"token_scores: logits {tuple(logits.shape)}, tokens {tuple(tokens.shape)} {tokens.dtype}")
    shares = torch.log_softmax(logits.float(), -1)
    own = shares.gather(1, tokens.clamp(min=0).unsqueeze(1)).squeeze(1)
    values, words = shares.topk(min(most, logits.shape[1]), -1)
    return TokenScores(own, values, words)
