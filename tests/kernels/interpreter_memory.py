"""What Triton's interpreter does to memory, checked as a GPU's tools would: the interpreter itself reads and writes
any address, and a kernel that does so passes unnoticed here and fails on a device.

Inside `watched_interpreter()` a launch fails with MemoryMisused when a program
- loads from or stores to an address outside the tensors that it was given (outside their views' elements, so that a
  row's padding counts as outside);
- stores to a place that another program of the launch loads or stores (a race), unless both use atomics or the test
  says `races_allowed`;
- and a masked-off load without `other`, which is 0 here and anything on a device, gives NaN (or a huge integer).

Programs run one after the other; `backwards` runs the last one first, for kernels whose programs wait for each other.
"""

import warnings
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any
from unittest.mock import patch

import numpy as np
import numpy.typing as npt
import torch
import triton.runtime.interpreter as triton_interpreter

from kernels.triton_jit import interpreting
from tests.kernels.interpreter_language import language_kept

_NOBODY, _SEVERAL = -1, -2
_POISON_INTEGER = -(1 << 30)


class MemoryMisused(AssertionError):
    """The text names the tensor or says that the address is in none."""


@dataclass
class _Region:
    """A tensor's storage: which bytes are elements, and which program of this launch touched each."""

    name: str
    start: int
    allowed: npt.NDArray[np.bool_]
    readers: npt.NDArray[np.int64]
    writers: npt.NDArray[np.int64]

    @property
    def end(self) -> int:
        return self.start + len(self.allowed)


@dataclass
class InterpreterMemory:
    """The launch that is running. Counts launches and, by parameter, bytes of all launches, so that tests can say how
    much an operation takes."""

    races_allowed: bool = False
    backwards: bool = False
    launches: int = 0
    loaded_bytes: Counter[str] = field(default_factory=Counter)
    stored_bytes: Counter[str] = field(default_factory=Counter)
    _regions: list[_Region] = field(default_factory=list)
    _program: int = 0

    def begin(self, tensors: list[tuple[str, torch.Tensor]]) -> None:
        """A launch with these arguments starts."""
        self.launches += 1
        self._regions = []
        for name, tensor in tensors:
            self._add(name, tensor)

    def at(self, program: int) -> None:
        """The program that runs from now on."""
        self._program = program

    def load(self, addresses: npt.NDArray[Any], mask: npt.NDArray[Any], width: int) -> None:
        """Checks a load of `width` bytes at each address whose mask is set."""
        for region, places in self._places("loads from", addresses, mask, width):
            self.loaded_bytes[region.name] += len(places)
            writers = region.writers[places]
            if not self.races_allowed and bool(((writers != _NOBODY) & (writers != self._program)).any()):
                raise MemoryMisused(f"program {self._program} loads what another program stored in {region.name}")
            region.readers[places] = _merged(region.readers[places], self._program)

    def store(self, addresses: npt.NDArray[Any], mask: npt.NDArray[Any], width: int) -> None:
        """Checks a store of `width` bytes at each address whose mask is set."""
        for region, places in self._places("stores to", addresses, mask, width):
            self.stored_bytes[region.name] += len(places)
            for touched in (region.writers[places], region.readers[places]):
                if not self.races_allowed and bool(((touched != _NOBODY) & (touched != self._program)).any()):
                    raise MemoryMisused(f"program {self._program} stores what another program touched: {region.name}")
            region.writers[places] = self._program

    def atomic(self, addresses: npt.NDArray[Any], mask: npt.NDArray[Any], width: int) -> None:
        """Checks an atomic operation: addresses only."""
        self._places("changes", addresses, mask, width)

    def _add(self, name: str, tensor: torch.Tensor) -> None:
        storage = tensor.untyped_storage()
        known = next((region for region in self._regions if region.start == storage.data_ptr()), None)
        if known is None:
            size = storage.nbytes()
            nobody = np.full(size, _NOBODY, np.int64)
            known = _Region(name, storage.data_ptr(), np.zeros(size, np.bool_), nobody, nobody.copy())
            self._regions.append(known)
        width, offset = tensor.element_size(), tensor.storage_offset()
        elements = torch.zeros(known.allowed.size // width, dtype=torch.bool)
        elements.as_strided(tensor.shape, tensor.stride(), offset).fill_(True)
        known.allowed[: len(elements) * width] |= np.repeat(elements.numpy(), width)

    def _places(
        self, verb: str, addresses: npt.NDArray[Any], mask: npt.NDArray[Any], width: int
    ) -> list[tuple[_Region, npt.NDArray[np.int64]]]:
        """Byte indices by region. Raises MemoryMisused for an address that is in none."""
        # A mask that was made of a scalar comes as integers of one byte.
        chosen = np.broadcast_to(addresses, mask.shape)[mask.astype(np.bool_)]
        wanted = chosen.astype(np.int64).reshape(-1, 1) + np.arange(width)
        left, found = wanted, list[tuple[_Region, npt.NDArray[np.int64]]]()
        for region in self._regions:
            inside = (left[:, 0] >= region.start) & (left[:, -1] < region.end)
            if inside.any():
                places = (left[inside] - region.start).reshape(-1)
                if not region.allowed[places].all():
                    raise MemoryMisused(f"program {self._program} {verb} padding of {region.name}")
                found.append((region, places))
                left = left[~inside]
        if len(left):
            names = ", ".join(region.name for region in self._regions)
            raise MemoryMisused(f"program {self._program} {verb} {len(left)} addresses outside {names}")
        return found


def _merged(before: npt.NDArray[np.int64], program: int) -> npt.NDArray[np.int64]:
    return np.where((before == _NOBODY) | (before == program), program, _SEVERAL)


def _poison(element: Any, shape: tuple[int, ...]) -> npt.NDArray[Any]:
    dtype = triton_interpreter._get_np_dtype(element)
    if not element.is_floating():
        return np.full(shape, _POISON_INTEGER).astype(dtype)
    # bfloat16, which numpy lacks, is held as its bits
    return np.full(shape, np.nan if np.issubdtype(dtype, np.floating) else 0x7FC0, dtype)


def _reason(error: BaseException) -> BaseException:
    """Our own finding inside the interpreter's error, or that error."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, MemoryMisused):
            return cause
        cause = cause.__cause__
    return error


class _WatchedLibrary:
    """Stands in for the interpreter's native part: checks, then does."""

    def __init__(self, library: Any, memory: InterpreterMemory) -> None:
        self._library, self._memory = library, memory

    def __getattr__(self, name: str) -> Any:
        return getattr(self._library, name)

    def load(self, addresses: Any, mask: Any, other: Any, dtype: Any) -> Any:
        self._memory.load(addresses, mask, np.dtype(dtype).itemsize)
        return self._library.load(addresses, mask, other, dtype)

    def store(self, addresses: Any, value: Any, mask: Any) -> Any:
        self._memory.store(addresses, mask, value.dtype.itemsize)
        return self._library.store(addresses, value, mask)

    def atomic_rmw(self, operation: Any, addresses: Any, value: Any, mask: Any, order: Any) -> Any:
        self._memory.atomic(addresses, mask, value.dtype.itemsize)
        return self._library.atomic_rmw(operation, addresses, value, mask, order)

    def atomic_cas(self, addresses: Any, expected: Any, value: Any, order: Any) -> Any:
        self._memory.atomic(addresses, np.ones_like(addresses, np.bool_), value.dtype.itemsize)
        return self._library.atomic_cas(addresses, expected, value, order)


@contextmanager
def watched_interpreter() -> Iterator[InterpreterMemory]:
    """Kernels run on CPU tensors inside, with the checks above. Raises InterpreterMixed."""
    memory = InterpreterMemory()
    executor, builder = triton_interpreter.GridExecutor, triton_interpreter.InterpreterBuilder
    call, load, index = executor.__call__, builder.create_masked_load, builder.set_grid_idx

    def launch(self: Any, *arguments: Any, **named: Any) -> Any:
        given = [*zip(self.arg_names, arguments, strict=False), *named.items()]
        memory.begin([(name, value) for name, value in given if isinstance(value, torch.Tensor)])
        try:
            return call(self, *arguments, **named)
        except triton_interpreter.InterpreterError as error:
            raise _reason(error) from error

    def masked_load(self: Any, pointers: Any, mask: Any, other: Any, *more: Any) -> Any:
        if other is None and not mask.data.all():
            element = pointers.get_element_ty()
            other = triton_interpreter.TensorHandle(_poison(element, pointers.data.shape), element)
        return load(self, pointers, mask, other, *more)

    def set_index(self: Any, x: int, y: int, z: int) -> None:
        if memory.backwards:
            x, y, z = (size - 1 - at for size, at in zip(self.grid_dim, (x, y, z), strict=True))
        memory.at((z << 40) + (y << 20) + x)
        index(self, x, y, z)

    library = _WatchedLibrary(triton_interpreter._interpreter, memory)
    with (
        interpreting(),
        patch.object(executor, "__call__", launch),
        patch.object(builder, "create_masked_load", masked_load),
        patch.object(builder, "set_grid_idx", set_index),
        patch.object(triton_interpreter, "_interpreter", library),
        language_kept(),
        np.errstate(all="ignore"),
        warnings.catch_warnings(),
    ):
        # A loop's bound that was loaded is an array of one number, which the interpreter turns into an index.
        warnings.filterwarnings("ignore", "Conversion of an array with ndim > 0", DeprecationWarning)
        yield memory
