"""Attention at real shapes: bf16 against float64, long contexts, graphs, and a cache beyond 2^31 elements.

Sizes are names of this module, so that the same bodies run at toy sizes where there is no GPU.
"""

from dataclasses import replace

import pytest
import torch

from kernels.paged_decode import decode_splits
from tests.kernels.attention_trials import (
    Options,
    Shape,
    decode_trial,
    far_trial,
    mixed_trial,
    prefill_trial,
    repeat_trial,
    replay_trial,
)

SHAPES: dict[str, Shape] = {
    "llama-2": Shape(32, 32, 128, 16, torch.bfloat16, "cuda", gap=2 * 32 * 128),
    "llama-3": Shape(32, 8, 128, 32, torch.bfloat16, "cuda", gap=2 * 8 * 128),
    "gemma-2": Shape(16, 8, 256, 16, torch.bfloat16, "cuda", gap=2 * 8 * 256),
    "small": Shape(9, 3, 64, 64, torch.float16, "cuda"),
    "80": Shape(8, 8, 80, 8, torch.bfloat16, "cuda"),
    "96": Shape(8, 2, 96, 16, torch.float16, "cuda"),
    "112": Shape(14, 2, 112, 16, torch.bfloat16, "cuda"),
    "192": Shape(8, 1, 192, 13, torch.bfloat16, "cuda"),
}
LARGE = ["llama-2", "llama-3", "gemma-2"]
# One set of options a shape: each is a compilation of its own.
OPTIONS = [Options(1024), Options(None, 0.0625, 50.0), Options(300, 0.1, 5.0)]
PAIRS = list(zip(LARGE, OPTIONS, strict=True))
CONTEXTS = [1, 0, 63, 64, 65, 1000, 4096, 17]
CHUNKS = ([512, 1, 130, 64], [512, 700, 2000, 64])
LONG, TIMES, CACHE_ELEMENTS = 3000, 100, 1 << 31


@pytest.mark.parametrize("name", SHAPES)
def test_decode(name: str) -> None:
    decode_trial(SHAPES[name], CONTEXTS, 8)


@pytest.mark.parametrize("splits", [1, 32])
def test_decode_in_one_part_and_in_many(splits: int) -> None:
    decode_trial(SHAPES["llama-3"], [1, 0, LONG, 2 * LONG], splits)


@pytest.mark.parametrize(("name", "options"), PAIRS, ids=str)
def test_decode_with_window_and_softcap(name: str, options: Options) -> None:
    decode_trial(SHAPES[name], [1, 299, 300, 301, LONG], 8, options, tokens=[6, 0, 2, 1, 4])


@pytest.mark.parametrize("name", SHAPES)
def test_prefill(name: str) -> None:
    prefill_trial(SHAPES[name], *CHUNKS)


@pytest.mark.parametrize(("name", "options"), PAIRS, ids=str)
def test_prefill_with_window_and_softcap(name: str, options: Options) -> None:
    prefill_trial(SHAPES[name], [310, 65], [310, LONG], options)


def test_fp32() -> None:
    shape = replace(SHAPES["llama-3"], dtype=torch.float32)
    decode_trial(shape, [1, 77, LONG], 8)
    prefill_trial(shape, [100, 70], [100, 900])


def test_mixed_step() -> None:
    mixed_trial(SHAPES["llama-3"], [LONG, 1, 500, 900], 400)


@pytest.mark.parametrize("name", LARGE)
def test_graph_replay_is_eager_bit_for_bit(name: str) -> None:
    contexts, shape = [LONG, 70, 1, LONG // 2], SHAPES[name]
    replay_trial(shape, contexts, decode_splits(len(contexts), shape.kv_heads, LONG, processors=132))


def test_every_run_gives_the_same_bits() -> None:
    repeat_trial(SHAPES["llama-3"], [LONG + 7 * row for row in range(16)], 32, TIMES)


def test_a_cache_beyond_two_to_the_31_elements() -> None:
    shape = SHAPES["llama-2"]
    block = shape.block_tokens * 2 * shape.kv_heads * shape.dim
    far_trial(shape, CACHE_ELEMENTS // block + 300, [1000, 600], 100)


def test_tiny_steps() -> None:
    """Few programs, for the sanitizer."""
    shape = replace(SHAPES["80"], heads=4, kv_heads=2, gap=16)
    decode_trial(shape, [1, 0, 200], 4, Options(90, None, 3.0))
    prefill_trial(shape, [5, 70], [5, 100])
