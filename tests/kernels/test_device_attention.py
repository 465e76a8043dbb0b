"""The records on a CPU: their reference against the formula, and what is refused on any device."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

from kernels.device_attention import DeviceAttention, device_attention
from kernels.paged_decode import DecodeRows
from tests.kernels.attention_trials import (
    Shape,
    assert_close,
    chunks,
    decode_rows,
    exact,
    queries,
    sequences,
)

SHAPE = Shape(4, 2, 16, 8)
HELD = sequences(SHAPE, [3, 9], finite=True)


@pytest.mark.parametrize(
    ("window", "scale", "softcap"), [(None, None, None), (7, None, None), (90, 0.2, 2.0), (None, 3.0, 0.7)]
)
def test_the_reference_agrees_with_the_formula(window: int | None, scale: float | None, softcap: float | None) -> None:
    shape, contexts = Shape(4, 2, 16, 8, gap=4), [33, 0, 20, 70]
    held, q = sequences(shape, contexts, finite=True), queries(shape, 24)
    rows = decode_rows(shape, held, contexts[:3], splits=1, tokens=[23, 5, 0])
    step = DeviceAttention(rows, chunks(shape, held.tables[3:], [6], [15], [70]))
    out = device_attention(q, held.cache, step, window, scale, softcap)
    for row, token in ((0, 23), (2, 0)):
        expected = exact(q[token : token + 1], held.keys[row], held.values[row], window, scale, softcap)
        assert_close(out[token : token + 1], expected, 1e-5)
    assert_close(out[6:21], exact(q[6:21], held.keys[3], held.values[3], window, scale, softcap), 1e-5)
    assert bool((out[5] == 0).all())


def _rows(contexts: list[int]) -> DecodeRows:
    return decode_rows(SHAPE, HELD, contexts, splits=1)


def _with(step: DeviceAttention, **changed: Any) -> DeviceAttention:
    assert step.decode is not None
    return step._replace(decode=step.decode._replace(**changed))


def _with_chunk(step: DeviceAttention, **changed: Any) -> DeviceAttention:
    return step._replace(prefill=chunks(SHAPE, HELD.tables[:1], [0], [1], [1])._replace(**changed))


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda q, cache, step: (q[..., :8], cache, step), "q "),
        (lambda q, cache, step: (q[:, :3], cache, step), "3 query heads"),
        (lambda q, cache, step: (q.half(), cache, step), "float16"),
        (lambda q, cache, step: (q.double(), cache.double(), step), "float64"),
        (lambda q, cache, step: (q.transpose(0, 1).contiguous().transpose(0, 1), cache, step), "dense"),
        (lambda q, cache, step: (q, cache.transpose(1, 3).contiguous().transpose(1, 3), step), "dense"),
        (lambda q, cache, step: (q, cache, _with(step, contexts=torch.ones(2).long())), "contexts is torch.int64"),
        (lambda q, cache, step: (q, cache, _with(step, tables=step.decode.tables[:1])), "tables"),
        (lambda q, cache, step: (q, cache, _with(step, tables=step.decode.tables.T)), "tables"),
        (lambda q, cache, step: (q[:1], cache, step), "1 tokens"),
        (lambda q, cache, step: (q, cache, _with(step, scratch=_rows([3]).scratch)), "scratch"),
        (lambda q, cache, step: (q, cache, _with_chunk(step, tiles=HELD.tables[:, :1])), "tiles"),
        (lambda q, cache, step: (q, cache, _with_chunk(step, tiles=torch.zeros(2, 4).int()[:, ::2])), "tiles"),
        (lambda q, cache, step: (q, cache, _with_chunk(step, tables=HELD.tables)), "tables"),
        (lambda q, cache, step: (q, cache, _with_chunk(step, counts=torch.ones(1))), "counts is torch.float32"),
    ],
)
def test_what_does_not_fit_is_refused(spoil: Callable[..., Any], said: str) -> None:
    q = queries(SHAPE, 2)
    step = DeviceAttention(_rows([3, 9]), None)
    with pytest.raises(ValueError, match=said):
        device_attention(*spoil(q, HELD.cache, step))


@pytest.mark.parametrize(("window", "softcap"), [(0, None), (None, 0.0)])
def test_a_window_or_cap_of_nothing_is_refused(window: int | None, softcap: float | None) -> None:
    step = DeviceAttention(_rows([3, 9]), None)
    with pytest.raises(ValueError, match="window"):
        device_attention(queries(SHAPE, 2), HELD.cache, step, window, None, softcap)
