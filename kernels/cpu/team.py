"""Threads that run one program together: each operation's work is taken in chunks, and a barrier ends it.

    control  int64, one cache line per field:  ARRIVED  how many threads wait at the barrier
                                               PASSED   how often it opened
                                               TAKEN    how many items of the present operation are taken

Whoever is free takes the next chunk, so a thread that the system holds up holds up its chunk only. The last thread at
the barrier clears TAKEN, when nobody uses it. Waiting threads look at PASSED for a while and then let others run:
steps are too short to sleep in between, but the machine may have other work.

Between programs the threads sleep. They belong to a `Team`, which its owner closes.
"""

import platform
import threading
from collections.abc import Callable, Sequence
from typing import Any, Final

import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils

from kernels.cpu.compiling import compiled, instruction
from kernels.cpu.vectors import I32, I64, pointer

ARRIVED, PASSED, TAKEN, FIELDS = 0, 8, 16, 24
SPINS: Final = 2000  # some 50 us, far longer than an operation's threads are usually apart


@instruction
def _fetch_add(_: Any, address: Any, number: Any) -> Any:
    """Adds to the number at an address, all or nothing, and returns what it was."""

    def generate(context: Any, builder: Any, _: Any, arguments: Sequence[Any]) -> Any:
        address, number = arguments
        return builder.atomic_rmw("add", pointer(builder, address, I64), number, "seq_cst")

    return types.int64(types.int64, types.int64), generate


@instruction
def _read(_: Any, address: Any) -> Any:
    """The number at an address, with everything that was written before it."""

    def generate(context: Any, builder: Any, _: Any, arguments: Sequence[Any]) -> Any:
        return builder.load_atomic(pointer(builder, arguments[0], I64), "acquire", 8)

    return types.int64(types.int64), generate


@instruction
def _write(_: Any, address: Any, number: Any) -> Any:
    """The number at an address, after everything that was written before it."""

    def generate(context: Any, builder: Any, _: Any, arguments: Sequence[Any]) -> Any:
        builder.store_atomic(arguments[1], pointer(builder, arguments[0], I64), "release", 8)
        return context.get_dummy_value()

    return types.void(types.int64, types.int64), generate


@instruction
def _give_way(_: Any) -> Any:
    """Lets another thread run on this processor."""

    def generate(context: Any, builder: Any, _: Any, arguments: Sequence[Any]) -> Any:
        function = cgutils.get_or_insert_function(builder.module, ir.FunctionType(I32, []), "sched_yield")
        builder.call(function, [])
        return context.get_dummy_value()

    return types.void(), generate


@instruction
def _pause(_: Any) -> Any:
    """Tells the processor that this is a loop that waits, where it has a word for that."""

    def generate(context: Any, builder: Any, _: Any, arguments: Sequence[Any]) -> Any:
        if platform.machine() in ("x86_64", "AMD64"):
            kind = ir.FunctionType(ir.VoidType(), [])
            builder.call(cgutils.get_or_insert_function(builder.module, kind, "llvm.x86.sse2.pause"), [])
        return context.get_dummy_value()

    return types.void(), generate


@compiled
def take(control: int, chunk: int) -> int:
    """The first of the next `chunk` items of this operation; beyond the last when there are none left."""
    first: int = _fetch_add(control + TAKEN * 8, chunk)
    return first


@compiled
def barrier(control: int, threads: int) -> None:
    """Returns when every thread is here; all that they wrote can be read then."""
    if threads == 1:
        _write(control + TAKEN * 8, 0)
        return
    passed = _read(control + PASSED * 8)
    if _fetch_add(control + ARRIVED * 8, 1) + 1 == threads:
        _write(control + ARRIVED * 8, 0)
        _write(control + TAKEN * 8, 0)
        _write(control + PASSED * 8, passed + 1)
        return
    spins = 0
    while _read(control + PASSED * 8) == passed:
        spins += 1
        if spins > SPINS:
            _give_way()
        else:
            _pause()


class Team:
    """`size` threads, the caller of `run` among them. Not thread-safe: one caller."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.control = np.zeros(FIELDS, np.int64)
        self._call: Callable[[int], None] | None = None
        self._starts = [threading.Semaphore(0) for _ in range(1, size)]
        self._threads = [
            threading.Thread(target=self._work, args=(number, start), name=f"kernels-{number}", daemon=True)
            for number, start in enumerate(self._starts, 1)
        ]
        for thread in self._threads:
            thread.start()

    def run(self, call: Callable[[int], None]) -> None:
        """call(0) here and call(1), call(2) ... beside it. They must end together, at a `barrier`, and not raise."""
        self._call = call
        for start in self._starts:
            start.release()
        call(0)

    def close(self) -> None:
        """Ends the other threads."""
        self._call = None
        for start in self._starts:
            start.release()
        for thread in self._threads:
            thread.join()

    def _work(self, number: int, start: threading.Semaphore) -> None:
        while True:
            start.acquire()
            call = self._call
            if call is None:
                return
            call(number)
