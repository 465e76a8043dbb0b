"""A first look at logits, spread over the device: per chunk of words the best and the sum of exp, per group the best.

    top[r, c]    = max_i x[r, i]                                over the chunk's words; infinite if there is a NaN
    word[r, c]   = the first of its words that is as good
    mass[r, c]   = sum_i exp((x[r, i] - top[r, c]) / temperature[r])       for rows that are not greedy
    best[r, g]   = max_i x[r, i]                                over the group's words

    logits  [rows, vocab]; all others fp32, word int32

A program takes one chunk of one row as a tile [groups, GROUP]: a device full of programs even for a single row.
"""

from typing import Final, NamedTuple

import torch

from kernels.triton_jit import CompileCase, Number, Pointer, cdiv, constexpr, jit, pointer, tl

CHUNK: Final = 4096
GROUP: Final = 128
_WARPS: Final = 4


class Survey(NamedTuple):
    """Made by `survey`. tops, words, masses: [rows, chunks]; best: [rows, groups]."""

    tops: torch.Tensor
    words: torch.Tensor
    masses: torch.Tensor
    best: torch.Tensor


@jit
def _survey_kernel(
    logits: Pointer,
    temperatures: Pointer,
    tops: Pointer,
    words: Pointer,
    masses: Pointer,
    best: Pointer,
    vocab: Number,
    row_stride: Number,
    num_groups: Number,
    least_temperature: Number,
    CHUNK: constexpr,
    GROUP: constexpr,
) -> None:
    chunk, row = tl.program_id(0), tl.program_id(1).to(tl.int64)
    inside = tl.arange(0, CHUNK // GROUP)
    at = chunk * CHUNK + inside[:, None] * GROUP + tl.arange(0, GROUP)[None, :]
    x = tl.load(logits + row * row_stride + at, mask=at < vocab, other=float("-inf")).to(tl.float32)
    x = tl.where(x == x, x, float("inf"))
    highest = tl.max(x, 1)
    groups = chunk * (CHUNK // GROUP) + inside
    tl.store(best + row * num_groups + groups, highest, mask=groups < num_groups)
    top = tl.max(highest, 0)
    place = row * tl.num_programs(0) + chunk
    tl.store(tops + place, top)
    tl.store(words + place, tl.min(tl.min(tl.where(x == top, at, 2147483647), 1), 0))
    temperature = tl.load(temperatures + row)
    if temperature >= least_temperature:
        weights = tl.exp((x - top) * (1.0 / temperature))
        # without any word: -inf minus -inf
        tl.store(masses + place, tl.where(top == float("-inf"), 0.0, tl.sum(tl.sum(weights, 1), 0)))


def survey(logits: torch.Tensor, temperatures: torch.Tensor, least_temperature: float) -> Survey:
    """Arguments have been checked (`sampling.py`); rows colder than the least temperature are greedy."""
    rows, vocab = logits.shape
    num_chunks, num_groups = cdiv(vocab, CHUNK), cdiv(vocab, GROUP)
    tops, masses = torch.empty((2, rows, num_chunks), dtype=torch.float32, device=logits.device)
    best = torch.empty((rows, num_groups), dtype=torch.float32, device=logits.device)
    words = torch.empty((rows, num_chunks), dtype=torch.int32, device=logits.device)
    _survey_kernel[(num_chunks, rows)](
        logits,
        temperatures,
        tops,
        words,
        masses,
        best,
        vocab,
        logits.stride(0),
        num_groups,
        least_temperature,
        CHUNK=CHUNK,
        GROUP=GROUP,
        num_warps=_WARPS,
    )
    return Survey(tops, words, masses, best)


def compile_cases() -> tuple[CompileCase, ...]:
    """Sizes are arguments."""
    return tuple(
        CompileCase(
            str(dtype),
            _survey_kernel,
            {
                "logits": pointer(dtype),
                **dict.fromkeys(("temperatures", "tops", "masses", "best"), "*fp32"),
                "words": "*i32",
                **dict.fromkeys(("vocab", "row_stride", "num_groups"), "i32"),
                "least_temperature": "fp32",
            },
            {"CHUNK": CHUNK, "GROUP": GROUP},
            num_warps=_WARPS,
            divisible=frozenset({"vocab", "row_stride"}),
        )
        for dtype in (torch.bfloat16, torch.float32)
    )
