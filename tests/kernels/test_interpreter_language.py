"""What the interpreter puts in the language's place: searched for once, the same results, and put back at the end."""

from unittest.mock import patch

import pytest
import torch
import triton.runtime.interpreter as triton_interpreter

from kernels.triton_jit import Number, Pointer, constexpr, jit, tl
from tests.kernels.interpreter_language import language_kept


@jit
def _double(values: Pointer) -> Pointer:
    return values * 2


@jit
def _double_kernel(values: Pointer, count: Number, BLOCK: constexpr) -> None:
    at = tl.arange(0, BLOCK)
    mask = at < count
    tl.store(values + at, _double(tl.load(values + at, mask=mask, other=0.0)), mask=mask)


def _run() -> None:
    values = torch.arange(5.0)
    for _ in range(3):
        _double_kernel[(1,)](values, 5, BLOCK=8)
    assert values.tolist() == [0, 8, 16, 24, 32]


def _language() -> list[object]:
    names = ("load", "store", "range", "reduce", "associative_scan", "multiple_of")
    return [*(getattr(tl, name) for name in names), tl.tensor.__add__, tl.dtype.to_ir, tl.math.exp, tl.core.arange]


@pytest.mark.parametrize("depth", [1, 2])
def test_it_is_searched_once_and_put_back(depth: int) -> None:
    before, search = _language(), triton_interpreter._patch_lang
    with patch.object(triton_interpreter, "_patch_lang", side_effect=search) as searched:
        with language_kept():
            _run()
            assert _language() != before
            if depth == 2:
                with language_kept():
                    _run()
            _run()
        assert searched.call_count == 1
        assert _language() == before
        _run()
        assert searched.call_count == 1 + 3 * 2
    assert _language() == before


def test_it_is_put_back_when_a_block_ends_badly() -> None:
    def end_badly() -> None:
        with language_kept():
            _run()
            raise ZeroDivisionError

    before = _language()
    with pytest.raises(ZeroDivisionError):
        end_badly()
    assert _language() == before
