"""Decode rows on the device: the kernel in the interpreter against the formula in float64."""

import pytest
import torch

from kernels.device_attention import DeviceAttention, device_attention
from kernels.paged_decode import DecodeScratch, decode_splits
from tests.kernels.attention_trials import (
    TOLERANCE,
    Options,
    Shape,
    assert_close,
    decode_rows,
    decode_trial,
    exact,
    far_trial,
    queries,
    repeat_trial,
    replay_trial,
    sequences,
)
from tests.kernels.interpreter_memory import InterpreterMemory

SHAPES = [
    Shape(4, 4, 16, 8),
    Shape(4, 1, 80, 16, torch.float16, gap=48),
    Shape(3, 1, 96, 64),
    Shape(6, 2, 112, 13, torch.float16),
    Shape(2, 2, 10, 8, gap=6),
    Shape(2, 1, 192, 32, torch.float16),
]


@pytest.mark.parametrize("splits", [1, 4])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_rows_of_any_length(interpreter: InterpreterMemory, shape: Shape, splits: int) -> None:
    interpreter.races_allowed = splits > 1  # a row's last program reads what the others left, behind an atomic
    decode_trial(shape, [1, 0, 64, 131], splits)
    assert interpreter.launches == 1


@pytest.mark.parametrize("options", [Options(1), Options(70), Options(500, 0.2, 2.0), Options(None, 3.0, 0.7)], ids=str)
def test_window_scale_and_softcap(interpreter: InterpreterMemory, options: Options) -> None:
    interpreter.races_allowed = True
    decode_trial(Shape(4, 2, 32, 16), [3, 150], 2, options)


def test_rows_name_their_tokens(interpreter: InterpreterMemory) -> None:
    interpreter.races_allowed = True
    decode_trial(Shape(4, 2, 16, 8), [40, 9, 130], 2, tokens=[5, 0, 3])


def test_a_row_uses_the_splits_that_its_context_is_worth(interpreter: InterpreterMemory) -> None:
    interpreter.races_allowed = True
    rows = decode_trial(Shape(1, 1, 16, 8), [1, 64, 65, 200, 1000], 8)
    used = (~rows.scratch.tops[:, 0].isnan()).sum(-1)
    assert used.tolist() == [0, 0, 2, 4, 8]  # a single one leaves nothing in scratch


def test_a_window_is_all_that_is_read(interpreter: InterpreterMemory) -> None:
    shape = Shape(2, 2, 16, 8)
    held, q = sequences(shape, [90]), queries(shape, 1)
    expected = exact(q, held.keys[0], held.values[0], 20)
    held.cache[held.tables[0, :8].long()] = float("nan")  # positions 0 .. 63; the window starts at 70
    step = DeviceAttention(decode_rows(shape, held, [90], splits=1), None)
    assert_close(device_attention(q, held.cache, step, 20), expected, TOLERANCE[shape.dtype])


@pytest.mark.parametrize("backwards", [False, True])
def test_a_replay_gives_the_same_bits(interpreter: InterpreterMemory, backwards: bool) -> None:
    interpreter.races_allowed = True
    interpreter.backwards = backwards  # whichever program of a row comes last
    replay_trial(Shape(4, 2, 16, 8, torch.float16), [200, 75, 1], 4)


def test_blocks_at_the_end_of_a_larger_cache(interpreter: InterpreterMemory) -> None:
    interpreter.races_allowed = True
    far_trial(Shape(4, 2, 16, 8), 60, [90, 30], 9)


def test_every_run_gives_the_same_bits(interpreter: InterpreterMemory) -> None:
    interpreter.races_allowed = True
    repeat_trial(Shape(2, 1, 16, 8), [100, 3], 2, 2)


def test_splits_fill_the_device_and_no_more() -> None:
    assert decode_splits(rows=1, kv_heads=32, max_context=4096, processors=132) == 16
    assert decode_splits(rows=1, kv_heads=8, max_context=1 << 20, processors=132) == 32
    assert decode_splits(rows=64, kv_heads=32, max_context=4096, processors=132) == 1
    assert decode_splits(rows=1, kv_heads=1, max_context=256, processors=132) == 2
    assert decode_splits(rows=1, kv_heads=1, max_context=1, processors=132) == 1
    assert decode_splits(rows=3, kv_heads=5, max_context=5000, processors=60) == 16
    with pytest.raises(ValueError, match="12 splits"):
        DecodeScratch.make(1, 4, 4, 16, 12, "cpu")
