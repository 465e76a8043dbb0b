"""Triton's interpreter, quicker: what it puts in the language's place stays there between launches.

It searches the whole language for what it must replace at every launch, and again at every call of a device function,
which is a good part of a small kernel's time. Within `language_kept()` it searches once for each set of modules that a
kernel sees, and everything is put back at the end.
"""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest.mock import patch

import triton.language as tl
import triton.runtime.interpreter as triton_interpreter


class _Kept:
    """What a launch is given to put back: nothing."""

    def restore(self) -> None:
        """Later, at the end of the block."""


@contextmanager
def language_kept() -> Iterator[None]:
    """A block may be inside another one."""
    search, found = triton_interpreter._patch_lang, set[frozenset[int]]()
    with ExitStack() as ends:

        def search_once(function: Any) -> _Kept:
            seen = frozenset(id(value) for value in function.__globals__.values() if value is tl or value is tl.core)
            if seen not in found:
                found.add(seen)
                ends.callback(search(function).restore)
            return _Kept()

        ends.enter_context(patch.object(triton_interpreter, "_patch_lang", search_once))
        yield
