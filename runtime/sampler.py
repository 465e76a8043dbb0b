"""From logits to one token per row.

Order, as in transformers: logit_bias, repetition penalty (prompt and answer), frequency and presence penalties
(answer), temperature, top_k, top_p, min_p, draw. A row that asks for none of these pays for none of them.

A draw depends on the row's seed and the position of the new token and on nothing else: the uniform number is a hash of
the two, and the token is found by inverse CDF over the vocabulary in id order. So the same request gives the same text
whatever else is in the batch, and again after a preemption. Probabilities are summed in float64, in id order, so that
rounding differences between batch shapes move a boundary by 1e-7, not a whole token's width.

Ties at the edge of top_k or top_p are all kept: which one a sort puts first would depend on the device.
"""

import hashlib
import math
from collections import Counter
from collections.abc import Sequence
from typing import Final

import torch

from runtime.batch import Row
from runtime.errors import LogitsInvalid
from runtime.protocol import SamplingParams

GREEDY_TEMPERATURE: Final = 1e-5

# The public range starts at 0, by which nothing can be divided.
SMALLEST_REPETITION_PENALTY: Final = 1e-2

# Rows drawn together; bounds the float64 scratch (256 k words of vocabulary: 16 MB a tensor).
_CHUNK_ROWS: Final = 8


def sample(logits: torch.Tensor, rows: Sequence[Row]) -> list[int]:
    """One token id per row; logits is [rows, vocab]. Raises LogitsInvalid that names the rows without finite ones."""
    scores = logits.float()
    adjusted = [index for index, row in enumerate(rows) if _is_adjusted(row.sampling)]
    if adjusted:
        scores = scores.clone() if scores is logits else scores
        for index in adjusted:
            _bias(scores[index], rows[index].sampling)
            _penalise(scores[index], rows[index])
    best, greedy = scores.max(-1)
    if not bool(torch.isfinite(best).all()):
        finite = torch.isfinite(best).tolist()
        raise LogitsInvalid(tuple(row.sequence_id for row, ok in zip(rows, finite, strict=True) if not ok))
    tokens: list[int] = greedy.tolist()
    drawn = [index for index, row in enumerate(rows) if row.sampling.temperature >= GREEDY_TEMPERATURE]
    for start in range(0, len(drawn), _CHUNK_ROWS):
        chunk = drawn[start : start + _CHUNK_ROWS]
        picked = _draw(scores[chunk] - best[chunk, None], [rows[index] for index in chunk])
        for index, token in zip(chunk, picked, strict=True):
            tokens[index] = token
    return tokens


def uniform(seed: int, position: int) -> float:
    """In [0, 1), from 53 bits of a hash of both integers, whatever their size or sign."""
    digest = hashlib.blake2b(f"{seed}:{position}".encode(), digest_size=8).digest()
    return float((int.from_bytes(digest, "little") >> 11) * 2.0**-53)


def _draw(scores: torch.Tensor, rows: Sequence[Row]) -> list[int]:
    """scores: [rows, vocab] with a maximum of 0."""
    cumulative = distribution(scores, [row.sampling for row in rows]).cumsum(-1)
    draws = torch.tensor(
        [[uniform(row.seed, len(row.history))] for row in rows], dtype=torch.float64, device=scores.device
    )
    # The total, not 1, is the upper end; `right` skips words of probability zero in front of the draw.
    found = torch.searchsorted(cumulative, draws * cumulative[:, -1:], right=True)
    last_word = torch.searchsorted(cumulative, cumulative[:, -1:].contiguous())
    picked: list[int] = torch.minimum(found, last_word).squeeze(1).tolist()
    return picked


def distribution(scores: torch.Tensor, samplings: Sequence[SamplingParams]) -> torch.Tensor:
    """What is drawn from: probabilities in float64 after temperature and filters.

    scores: [rows, vocab] with a maximum of 0; temperatures are above 0.
    """
    device = scores.device
    scores = scores / torch.tensor([[sampling.temperature] for sampling in samplings], device=device)
    vocab = scores.shape[1]
    limits = [sampling.top_k if 0 < sampling.top_k < vocab else vocab for sampling in samplings]
    mass = [sampling.top_p for sampling in samplings]
    if min(limits) < vocab or min(mass) < 1.0:
        ordered = scores.sort(-1, descending=True).values
        kth = ordered.gather(1, torch.tensor([[limit - 1] for limit in limits], device=device))
        scores = scores.masked_fill(scores < kth, float("-inf"))
        if min(mass) < 1.0:
            # 1.0 must keep everything, though the sum of many roundings may pass 1 early.
            keep = torch.tensor([[share if share < 1.0 else 2.0] for share in mass], dtype=torch.float64, device=device)
            share = torch.softmax(ordered.masked_fill(ordered < kth, float("-inf")), -1, dtype=torch.float64)
            before = share.cumsum(-1) - share
            last = (before < keep).sum(-1, keepdim=True).clamp_(min=1) - 1
            scores = scores.masked_fill(scores < ordered.gather(1, last), float("-inf"))
    floors = [sampling.min_p for sampling in samplings]
    if max(floors) > 0.0:
        # Relative to the best word, whose score is 0: what top_k and top_p took away does not move the floor.
        least = torch.tensor([[math.log(floor) if floor > 0.0 else -math.inf] for floor in floors], device=device)
        scores = scores.masked_fill(scores < least, float("-inf"))
    return torch.softmax(scores, -1, dtype=torch.float64)


def _is_adjusted(sampling: SamplingParams) -> bool:
    """Whether the logits themselves change, greedy or not."""
    return (
        sampling.repetition_penalty != 1.0
        or sampling.frequency_penalty != 0.0
        or sampling.presence_penalty != 0.0
        or bool(sampling.logit_bias)
    )


def _bias(scores: torch.Tensor, sampling: SamplingParams) -> None:
    """In place; scores is [vocab]. A token that is named twice counts once, by its last value."""
    if sampling.logit_bias:
        biases = dict(sampling.logit_bias)
        scores[torch.tensor(list(biases), device=scores.device)] += torch.tensor(
            list(biases.values()), dtype=torch.float32, device=scores.device
        )


def _penalise(scores: torch.Tensor, row: Row) -> None:
    """In place; scores is [vocab]."""
    sampling = row.sampling
    if sampling.repetition_penalty != 1.0 and row.history:
        seen = torch.tensor(sorted(set(row.history)), device=scores.device)
        values = scores[seen]
        penalty = max(sampling.repetition_penalty, SMALLEST_REPETITION_PENALTY)
        scores[seen] = torch.where(values > 0, values / penalty, values * penalty)
    answer = row.history[row.prompt_tokens :]
    if answer and (sampling.frequency_penalty != 0.0 or sampling.presence_penalty != 0.0):
        counted = Counter(answer)
        words = torch.tensor(list(counted), device=scores.device)
        counts = torch.tensor(list(counted.values()), dtype=torch.float32, device=scores.device)
        scores[words] -= sampling.frequency_penalty * counts + sampling.presence_penalty
