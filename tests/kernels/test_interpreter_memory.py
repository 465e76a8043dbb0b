"""The watch over the interpreter finds what it is there to find: each kernel here has one fault, and its twin none."""

import pytest
import torch

from kernels.errors import InterpreterMixed
from kernels.triton_jit import IS_INTERPRETED, Number, Pointer, constexpr, interpreting, jit, runs_kernel, tl
from tests.kernels.interpreter_memory import InterpreterMemory, MemoryMisused
from tests.kernels.padded import padded, padding_is_intact


@jit
def _copy_kernel(
    source: Pointer, target: Pointer, count: Number, row_stride: Number, BLOCK: constexpr, MASKED: constexpr
) -> None:
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    row = tl.program_id(1) * row_stride
    mask = at < count if MASKED else at < count + BLOCK
    tl.store(target + row + at, tl.load(source + row + at, mask=mask, other=0.0), mask=mask)


@jit
def _sum_kernel(source: Pointer, target: Pointer, count: Number, BLOCK: constexpr, OTHER: constexpr) -> None:
    at = tl.arange(0, BLOCK)
    if OTHER:
        values = tl.load(source + at, mask=at < count, other=0.0)
    else:
        values = tl.load(source + at, mask=at < count)
    tl.store(target + tl.program_id(0), tl.sum(values, 0))


@jit
def _shift_kernel(values: Pointer, count: Number, ATOMIC: constexpr) -> None:
    at = tl.program_id(0)
    following = tl.load(values + at + 1)
    if ATOMIC:
        tl.atomic_add(values + at, following)
    else:
        tl.store(values + at, following)


@jit
def _arrival_kernel(counter: Pointer, order: Pointer) -> None:
    tl.store(order + tl.program_id(0) * 3 + tl.program_id(1), tl.atomic_add(counter, 1))


@jit
def _flagged_kernel(flag: Pointer, values: Pointer, count: Number, BLOCK: constexpr) -> None:
    at = tl.arange(0, BLOCK)
    tl.store(values + at, at.to(tl.float32) * 0 + 1, mask=(at < count) & (tl.load(flag) > 0))


def _copied(shape: tuple[int, int], gap: int, *, masked: bool) -> tuple[torch.Tensor, torch.Tensor]:
    source, target = padded(torch.randn(shape), gap=gap), padded(torch.zeros(shape), gap=gap)
    _copy_kernel[(-(-shape[1] // 8), shape[0])](source, target, shape[1], source.stride(0), BLOCK=8, MASKED=masked)
    return source, target


def test_a_masked_copy_is_in_order(interpreter: InterpreterMemory) -> None:
    source, target = _copied((3, 13), 5, masked=True)
    assert torch.equal(source, target)
    assert padding_is_intact(target)
    assert interpreter.launches == 1
    assert (interpreter.loaded_bytes, interpreter.stored_bytes) == ({"source": 156}, {"target": 156})


@pytest.mark.parametrize(("shape", "gap", "where"), [((1, 5), 0, "padding"), ((2, 13), 5, "padding of source")])
def test_reading_behind_a_row_is_found(
    interpreter: InterpreterMemory, shape: tuple[int, int], gap: int, where: str
) -> None:
    with pytest.raises(MemoryMisused, match=where):
        _copied(shape, gap, masked=False)


def test_an_address_in_no_tensor_is_found(interpreter: InterpreterMemory) -> None:
    with pytest.raises(MemoryMisused, match="outside source, target"):
        _copy_kernel[(2, 1)](torch.zeros(8), torch.zeros(8), 16, 0, BLOCK=8, MASKED=True)


def test_what_a_mask_leaves_undefined_is_poisoned(interpreter: InterpreterMemory) -> None:
    found = torch.zeros(1)
    _sum_kernel[(1,)](torch.ones(5), found, 5, BLOCK=8, OTHER=True)
    assert found.tolist() == [5]
    _sum_kernel[(1,)](torch.ones(5), found, 5, BLOCK=8, OTHER=False)
    assert found.isnan().all()


def test_a_race_is_found(interpreter: InterpreterMemory) -> None:
    _shift_kernel[(1,)](torch.ones(9), 8, ATOMIC=False)
    with pytest.raises(MemoryMisused, match="another program touched"):
        _shift_kernel[(8,)](torch.ones(9), 8, ATOMIC=False)
    _shift_kernel[(8,)](torch.ones(9), 8, ATOMIC=True)
    interpreter.races_allowed = True
    _shift_kernel[(8,)](torch.ones(9), 8, ATOMIC=False)


@pytest.mark.parametrize("backwards", [False, True])
def test_programs_can_run_last_first(interpreter: InterpreterMemory, backwards: bool) -> None:
    interpreter.backwards = backwards
    order = torch.zeros(6, dtype=torch.int32)
    _arrival_kernel[(2, 3)](torch.zeros(1, dtype=torch.int32), order)
    assert order.tolist() == ([5, 4, 3, 2, 1, 0] if backwards else [0, 1, 2, 3, 4, 5])


@pytest.mark.parametrize("flag", [0, 1])
def test_a_mask_may_hang_on_a_number(interpreter: InterpreterMemory, flag: int) -> None:
    flags, values = torch.tensor([flag]), padded(torch.zeros(5))
    _flagged_kernel[(1,)](flags, values, 5, BLOCK=8)
    assert values.tolist() == [flag] * 5
    assert padding_is_intact(values)


def test_padding_that_was_written_shows() -> None:
    tensor = padded(torch.zeros(2, 3), gap=1)
    assert padding_is_intact(tensor)
    tensor.as_strided((1,), (1,), tensor.storage_offset() + 3).fill_(0)
    assert not padding_is_intact(tensor)


def test_cpu_tensors_take_the_reference_unless_asked() -> None:
    tensor = torch.zeros(1)
    assert IS_INTERPRETED
    assert not runs_kernel(tensor)
    with interpreting():
        assert runs_kernel(tensor)
    assert not runs_kernel(tensor)


def test_an_interpreter_that_was_not_asked_for_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kernels.triton_jit.IS_INTERPRETED", False)
    with pytest.raises(InterpreterMixed, match="TRITON_INTERPRET"), interpreting():
        pass
