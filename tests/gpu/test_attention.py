"""Attention at real shapes: bf16 against float64, long contexts, graphs, and a cache beyond 2^31 elements."""

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

LLAMA_2 = Shape(32, 32, 128, 16, torch.bfloat16, "cuda", gap=2 * 32 * 128)
LLAMA_3 = Shape(32, 8, 128, 32, torch.bfloat16, "cuda", gap=2 * 8 * 128)
GEMMA_2 = Shape(16, 8, 256, 16, torch.bfloat16, "cuda", gap=2 * 8 * 256)
SMALL = Shape(9, 3, 64, 64, torch.float16, "cuda")
ODD = [Shape(8, 8, 80, 8, torch.bfloat16, "cuda"), Shape(8, 2, 96, 16, torch.float16, "cuda"),
       Shape(14, 2, 112, 16, torch.bfloat16, "cuda"), Shape(8, 1, 192, 13, torch.bfloat16, "cuda")]  # fmt: skip
ALL = [LLAMA_2, LLAMA_3, GEMMA_2, SMALL, *ODD]


LARGE = [LLAMA_2, LLAMA_3, GEMMA_2]
OPTIONS = [Options(1024), Options(None, 0.0625, 50.0), Options(300, 0.1, 5.0)]
# One set of options a shape: each is a compilation of its own.
PAIRS = list(zip(LARGE, OPTIONS, strict=True))


@pytest.mark.parametrize("shape", ALL, ids=str)
def test_decode(shape: Shape) -> None:
    decode_trial(shape, [1, 0, 63, 64, 65, 1000, 4096, 17], 8)


@pytest.mark.parametrize("splits", [1, 32])
def test_decode_in_one_part_and_in_many(splits: int) -> None:
    decode_trial(LLAMA_3, [1, 0, 4096, 8000], splits)


@pytest.mark.parametrize(("shape", "options"), PAIRS, ids=str)
def test_decode_with_window_and_softcap(shape: Shape, options: Options) -> None:
    decode_trial(shape, [1, 299, 300, 301, 3000], 8, options, tokens=[6, 0, 2, 1, 4])


@pytest.mark.parametrize("shape", ALL, ids=str)
def test_prefill(shape: Shape) -> None:
    prefill_trial(shape, [512, 1, 130, 64], [512, 700, 2000, 64])


@pytest.mark.parametrize(("shape", "options"), PAIRS, ids=str)
def test_prefill_with_window_and_softcap(shape: Shape, options: Options) -> None:
    prefill_trial(shape, [310, 65], [310, 2300], options)


def test_fp32() -> None:
    shape = Shape(8, 2, 128, 16, torch.float32, "cuda")
    decode_trial(shape, [1, 77, 2000], 8)
    prefill_trial(shape, [100, 70], [100, 900])


def test_mixed_step() -> None:
    mixed_trial(LLAMA_3, [3000, 1, 500, 900], 400)


@pytest.mark.parametrize("shape", LARGE, ids=str)
def test_graph_replay_is_eager_bit_for_bit(shape: Shape) -> None:
    processors = torch.cuda.get_device_properties(0).multi_processor_count
    contexts = [4000, 70, 1, 2500]
    replay_trial(shape, contexts, decode_splits(len(contexts), shape.kv_heads, 4096, processors))


def test_every_run_gives_the_same_bits() -> None:
    repeat_trial(LLAMA_3, [3000 + 7 * row for row in range(16)], 32, 100)


def test_a_cache_beyond_two_to_the_31_elements() -> None:
    far_trial(LLAMA_2, (1 << 31) // (16 * 2 * 32 * 128) + 300, [1000, 600], 100)
