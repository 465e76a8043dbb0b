"""Prefill chunks on the device: the kernel in the interpreter against the formula in float64."""

import pytest
import torch

from kernels.paged_prefill import TILE_QUERIES, chunk_tiles
from tests.kernels.attention_trials import Options, Shape, mixed_trial, prefill_trial
from tests.kernels.interpreter_memory import InterpreterMemory

SHAPES = [
    Shape(2, 2, 16, 8),
    Shape(4, 1, 80, 16, torch.float16, gap=48),
    Shape(3, 1, 96, 64, gap=8),
    Shape(2, 1, 112, 13, torch.float16),
    Shape(1, 1, 256, 32, torch.float16),
]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_ragged_chunks(interpreter: InterpreterMemory, shape: Shape) -> None:
    prefill_trial(shape, [70, 1, 5, 64], [70, 40, 133, 100])
    assert interpreter.launches == 1


@pytest.mark.parametrize("options", [Options(1), Options(17), Options(90, 0.2, 2.0), Options(None, 3.0, 0.7)], ids=str)
def test_window_scale_and_softcap(interpreter: InterpreterMemory, options: Options) -> None:
    prefill_trial(Shape(4, 2, 32, 16), [66, 30], [66, 150], options)


def test_decode_rows_and_chunks_share_a_step(interpreter: InterpreterMemory) -> None:
    mixed_trial(Shape(4, 2, 16, 8), [33, 20, 12], 10)
    assert interpreter.launches == 2


def test_tiles_cover_every_query_and_begin_with_the_longest() -> None:
    counts, contexts = [130, 3, 64], [130, 900, 200]
    tiles = chunk_tiles(counts, contexts)
    assert tiles == [(1, 0), (2, 0), (0, 128), (0, 64), (0, 0)]
    covered = {(chunk, query) for chunk, first in tiles for query in range(first, min(first + 64, counts[chunk]))}
    assert TILE_QUERIES == 64
    assert len(covered) == sum(counts)
