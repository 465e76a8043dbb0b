"""Log-probabilities of sampled tokens and of the best alternatives, for rows that ask.

They are the model's own, as in vLLM by default: log-softmax of the logits as they left the model, before logit_bias,
penalties, temperature and filters. So they say what the model thinks, the same at every temperature; a token that a
bias forced shows how unlikely the model held it. Under a grammar they are those among the words that it allows, also as
in vLLM: the forbidden ones are no alternatives. Rows that do not ask cost one look at their parameters.
"""

import math
from collections.abc import Sequence
from typing import Final

import torch

from runtime.batch import Row, Sampled, Scored
from runtime.protocol import TokenScore

# Stands for minus infinity, which JSON cannot say; OpenAI's number.
LEAST: Final = -9999.0

# Rows scored together; bounds the scratch (256 k words of vocabulary: 8 MB).
_CHUNK_ROWS: Final = 8


def scored(logits: torch.Tensor, rows: Sequence[Row], tokens: Sequence[int]) -> list[Sampled]:
    """The tokens, those of rows with `top_logprobs` with their scores; logits is [rows, vocab]."""
    found: list[Sampled] = list(tokens)
    asking = [index for index, row in enumerate(rows) if row.sampling.top_logprobs is not None]
    for start in range(0, len(asking), _CHUNK_ROWS):
        chunk = asking[start : start + _CHUNK_ROWS]
        shares = torch.log_softmax(logits[chunk].float(), -1)
        own = shares.clamp(min=LEAST).gather(
            1, torch.tensor([[tokens[index]] for index in chunk], device=shares.device)
        )
        most = min(max(rows[index].sampling.top_logprobs or 0 for index in chunk), shares.shape[1])
        values, words = shares.topk(most, -1) if most else (shares[:, :0], shares[:, :0].long())
        for index, mine, best, ids in zip(chunk, own[:, 0].tolist(), values.tolist(), words.tolist(), strict=True):
            found[index] = Scored(tokens[index], score_of(rows[index], mine, best, ids))
    return found


def score_of(row: Row, own: float, best: Sequence[float], words: Sequence[int]) -> TokenScore:
    """A row's score from what was read back for it: at least as many alternatives as it asks for, best first."""
    count = row.sampling.top_logprobs or 0
    free = row.constraint is None
    top = tuple(
        (word, max(value, LEAST))
        for word, value in zip(words[:count], best[:count], strict=True)
        if free or value > -math.inf
    )
    return TokenScore(max(own, LEAST), top)
