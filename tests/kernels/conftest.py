"""The interpreter as a fixture: `interpreter` runs kernels on CPU tensors and checks every address they touch."""

from collections.abc import Iterator

import pytest

from tests.kernels.interpreter_memory import InterpreterMemory, watched_interpreter


@pytest.fixture
def interpreter() -> Iterator[InterpreterMemory]:
    with watched_interpreter() as memory:
        yield memory
