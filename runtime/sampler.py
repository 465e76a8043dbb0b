"""From logits to one token per row.

Order, as in transformers: logit_bias, repetition penalty (prompt and answer), frequency and presence penalties
(answer), temperature, top_k, top_p, min_p, draw. A row that asks for none of these pays for none of them.

A draw depends on the row's seed and the position of the new token and on nothing else: the uniform number is a hash of
the two, and the token is found by inverse CDF over the vocabulary in id order. So the same request gives the same text
whatever else is in the batch, and again after a preemption (`runtime/draw.py`).

Ties at the edge of top_k or top_p are all kept: which one a sort puts first would depend on the device.
"""

import hashlib
import math
from collections import Counter
from collections.abc import Sequence
from typing import Final, NamedTuple

import torch

from runtime.batch import Row
from runtime.draw import LEAST_SCORE, draw, exponentials
from runtime.errors import LogitsInvalid
from runtime.protocol import SamplingParams
from runtime.shortlist import shortlist

GREEDY_TEMPERATURE: Final = 1e-5

# The public range starts at 0, by which nothing can be divided.
SMALLEST_REPETITION_PENALTY: Final = 1e-2

# Rows drawn together; bounds the scratch (256 k words of vocabulary: 8 MB a tensor).
_CHUNK_ROWS: Final = 8

# top_p looks among this many words first, on the long way.
_FIRST_WORDS: Final = 1024
_MORE: Final = 8


class Logits(NamedTuple):
    """values [rows, vocab]. best: of each row the first word with the greatest logit, -1 where one is not finite;
    None where nobody has looked yet, or where the values were changed since."""

    values: torch.Tensor
    best: list[int] | None = None


def sample(logits: Logits, rows: Sequence[Row]) -> list[int]:
    """One token id per row. Raises LogitsInvalid that names the rows without finite ones."""
    drawn = [index for index, row in enumerate(rows) if row.sampling.temperature >= GREEDY_TEMPERATURE]
    if logits.best is not None and not drawn and not any(is_adjusted(row.sampling) for row in rows):
        _refuse([word >= 0 for word in logits.best], rows)
        return logits.best
    scores = logits.values.float()
    if any(is_adjusted(row.sampling) for row in rows):
        scores = scores.clone() if scores is logits.values else scores
        adjust(scores, rows)
    best, greedy = scores.max(-1)
    _refuse(torch.isfinite(best).tolist(), rows)
    tokens: list[int] = greedy.tolist()
    drawn.sort(key=lambda index: _is_cut(rows[index].sampling))  # rows without top_k and top_p do not share their cost
    for start in range(0, len(drawn), _CHUNK_ROWS):
        chunk = drawn[start : start + _CHUNK_ROWS]
        follow = chunk == list(range(chunk[0], chunk[0] + len(chunk)))
        some = slice(chunk[0], chunk[0] + len(chunk)) if follow else chunk  # a view if possible
        picked = _draw(scores[some] - best[some].unsqueeze(1), [rows[index] for index in chunk])
        for index, token in zip(chunk, picked, strict=True):
            tokens[index] = token
    return tokens


def _refuse(finite: Sequence[bool], rows: Sequence[Row]) -> None:
    if not all(finite):
        raise LogitsInvalid(tuple(row.sequence_id for row, ok in zip(rows, finite, strict=True) if not ok))


def uniform(seed: int, position: int) -> float:
    """In [0, 1), from 53 bits of a hash of both integers, whatever their size or sign."""
    digest = hashlib.blake2b(f"{seed}:{position}".encode(), digest_size=8).digest()
    return float((int.from_bytes(digest, "little") >> 11) * 2.0**-53)


def _draw(scores: torch.Tensor, rows: Sequence[Row]) -> list[int]:
    """scores: [rows, vocab] with a maximum of 0. The long way is for rows that a shortlist does not decide."""
    temperatures = torch.tensor([[row.sampling.temperature] for row in rows], device=scores.device)
    scores = torch.nn.functional.threshold(scores / temperatures, LEAST_SCORE, float("-inf"), inplace=True)
    samplings = [row.sampling for row in rows]
    uniforms = [uniform(row.seed, len(row.history)) for row in rows]
    tokens = [-1] * len(rows)
    cut = [index for index, sampling in enumerate(samplings) if _is_cut(sampling)]
    if cut:
        some = shortlist(scores if len(cut) == len(rows) else scores[cut], [samplings[index] for index in cut])
        words = some.draw([uniforms[index] for index in cut])
        for index, word, decided in zip(cut, words, some.decided.tolist(), strict=True):
            tokens[index] = word if decided else -1
    left = [index for index, token in enumerate(tokens) if token < 0]
    if left:
        weights = distribution(scores if len(left) == len(rows) else scores[left], [samplings[index] for index in left])
        for index, word in zip(left, draw(weights, [uniforms[index] for index in left]), strict=True):
            tokens[index] = word
    return tokens


def distribution(scores: torch.Tensor, samplings: Sequence[SamplingParams]) -> torch.Tensor:
    """What is drawn from, the long way: weights after the filters, as `runtime/draw.py` wants them.

    scores: [rows, vocab] after temperature, with a maximum of 0.
    """
    device = scores.device
    vocab = scores.shape[1]
    limits = [sampling.top_k if 0 < sampling.top_k < vocab else vocab for sampling in samplings]
    mass = [sampling.top_p for sampling in samplings]
    if min(limits) < vocab:
        best = scores.topk(max(limit for limit in limits if limit < vocab), -1).values
        kth = best.gather(1, torch.tensor([[limit - 1 if limit < vocab else 0] for limit in limits], device=device))
        limited = torch.tensor([[limit < vocab] for limit in limits], device=device)
        scores = scores.masked_fill(limited & (scores < kth), float("-inf"))
    if min(mass) < 1.0:
        scores = scores.masked_fill(scores < _nucleus(scores, mass, min(max(limits), _FIRST_WORDS)), float("-inf"))
    floors = [sampling.min_p for sampling in samplings]
    if max(floors) > 0.0:
        # Relative to the best word, whose score is 0: what top_k and top_p took away does not move the floor.
        least = torch.tensor([[math.log(floor) if floor > 0.0 else -math.inf] for floor in floors], device=device)
        scores = scores.masked_fill(scores < least, float("-inf"))
    return exponentials(scores)


def _nucleus(scores: torch.Tensor, mass: Sequence[float], width: int) -> torch.Tensor:
    """[rows, 1]: the least score among the best words that together have the mass; minus infinity for 1.0.

    Looks at the `width` best words, and at more for the rows where they have too little: of 128 k words, sorting all
    takes ten times as long as finding the first thousand in order.
    """
    vocab = scores.shape[1]
    keep = torch.tensor([[share] for share in mass], dtype=torch.float64, device=scores.device)
    total = scores.exp().sum(-1, keepdim=True, dtype=torch.float64)
    # 1.0 must keep everything, though the sum of many roundings may pass 1 early.
    least = scores.new_full(keep.shape, float("-inf"))
    open_rows = (keep[:, 0] < 1.0).nonzero()[:, 0]
    while open_rows.numel():
        ordered = scores[open_rows].topk(min(width, vocab), -1).values
        share = ordered.exp().double() / total[open_rows]
        reached = share.cumsum(-1)
        last = (reached - share < keep[open_rows]).sum(-1, keepdim=True).clamp_(min=1) - 1
        least[open_rows] = ordered.gather(1, last)
        if width >= vocab:
            break
        open_rows = open_rows[reached[:, -1] < keep[open_rows, 0]]
        width *= _MORE
    return least


def _is_cut(sampling: SamplingParams) -> bool:
    return sampling.top_k > 0 or sampling.top_p < 1.0


def is_adjusted(sampling: SamplingParams) -> bool:
    """Whether the logits themselves change, greedy or not."""
    return sampling.has_penalties or bool(sampling.logit_bias)


def adjust(scores: torch.Tensor, rows: Sequence[Row]) -> None:
    """Biases and penalties, in place; scores is [rows, vocab]."""
    _bias(scores, rows)
    for index, row in enumerate(rows):
        if is_adjusted(row.sampling):
            _penalise(scores[index], row)


def _bias(scores: torch.Tensor, rows: Sequence[Row]) -> None:
    """In place, all rows at once; scores is [rows, vocab]."""
    biased = [(index, row.sampling.logit_bias) for index, row in enumerate(rows) if row.sampling.logit_bias]
    if biased:
        lines = torch.tensor([index for index, biases in biased for _ in biases], device=scores.device)
        words = torch.tensor([word for _, biases in biased for word, _ in biases], device=scores.device)
        added = torch.tensor(
            [bias for _, biases in biased for _, bias in biases], dtype=torch.float32, device=scores.device
        )
        scores.index_put_((lines, words), added, accumulate=True)


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
