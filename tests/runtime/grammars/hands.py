"""Grammars that compile when the test says so."""

import asyncio
from collections.abc import Callable
from concurrent.futures import Executor, Future
from dataclasses import dataclass, field
from typing import Any

from runtime.grammars.constraint import Constraint
from runtime.protocol import Grammar


@dataclass
class Made:
    """`Prepared` and `Constraint` at once."""

    grammar: Grammar
    worn: bool = False
    done: bool = False
    problem: str | None = None
    taken: list[int] = field(default_factory=list)

    def start(self) -> Constraint:
        """Itself: one sequence is all it serves."""
        return self

    def take(self, token: int) -> None:
        self.taken.append(token)


class Hands(Executor):
    """Does nothing by itself: the test finishes what was begun."""

    def __init__(self) -> None:
        self.begun: list[tuple[Grammar, Future[Any]]] = []
        self.closed = False

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        future: Future[Any] = Future()
        future.set_running_or_notify_cancel()
        self.begun.append((args[0], future))
        return future

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        self.closed = True

    @property
    def names(self) -> list[str]:
        return [grammar.source for grammar, _ in self.begun]

    async def finish(self, name: str, result: Made | Exception | None = None, size: int = 0) -> None:
        index = self.names.index(name)
        grammar, future = self.begun.pop(index)
        if isinstance(result, Exception):
            future.set_exception(result)
        else:
            future.set_result((result or Made(grammar), size))
        await turns()


async def turns() -> None:
    for _ in range(6):
        await asyncio.sleep(0)


def lark(name: str) -> Grammar:
    return Grammar("lark", name)
