"""Compiled grammars, and the work of compiling them, on the event loop; the work itself is done in worker threads.

    get ──> entry: ready (start) or a problem (raise)
        └─> flight, one per grammar however many ask:  queued ──an account's turn──> compiling ──> entry
                                                          └──nobody waits any more──> dropped

What is held: entries up to `max_bytes`, the least used leave first; flights up to a number in all and per account;
waiting callers up to a number. Beyond these GrammarsBusy is raised, and for PASSING_S after a failure that was not the
grammar's fault. Accounts take turns for the threads, so the schemas of one cannot hold up those of another for long.
"""

import asyncio
import functools
import logging
from collections import OrderedDict, deque
from collections.abc import Callable
from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Final

from runtime.errors import GrammarInvalid, GrammarsBusy
from runtime.grammars.constraint import Constraint, Prepared
from runtime.grammars.priority import give_way
from runtime.protocol import Grammar

logger = logging.getLogger(__name__)

PASSING_S: Final = 10.0
_LEAST_BYTES: Final = 64 * 1024

Compile = Callable[[Grammar], tuple[Prepared, int]]


@dataclass(frozen=True, slots=True)
class _Problem:
    """forget_at: None when the grammar itself is at fault; else it is worth another try from then on."""

    reason: str
    forget_at: float | None


@dataclass(eq=False, slots=True)
class _Flight:
    grammar: Grammar
    account_id: str
    landed: asyncio.Future[Prepared | _Problem]
    num_waiting: int = 0
    compiling: bool = False


@dataclass(slots=True)
class _Entries:
    """Least used first."""

    max_bytes: int
    num_bytes: int = 0
    _items: OrderedDict[Grammar, tuple[Prepared | _Problem, int]] = field(default_factory=OrderedDict)

    def __len__(self) -> int:
        return len(self._items)

    def get(self, grammar: Grammar) -> Prepared | _Problem | None:
        if grammar not in self._items:
            return None
        self._items.move_to_end(grammar)
        return self._items[grammar][0]

    def put(self, grammar: Grammar, value: Prepared | _Problem, size: int) -> None:
        self.drop(grammar)
        size = max(size, _LEAST_BYTES) + 4 * len(grammar.source)
        self._items[grammar] = value, size
        self.num_bytes += size
        while self.num_bytes > self.max_bytes:
            self.drop(next(iter(self._items)))

    def drop(self, grammar: Grammar) -> None:
        if grammar in self._items:
            self.num_bytes -= self._items.pop(grammar)[1]


class GrammarCache:
    """`compile` blocks, returns what it made and the bytes that takes, and raises GrammarInvalid.

    It is called in `threads` threads, those of `pool` if that is given, which is closed with this.
    """

    def __init__(
        self,
        compile: Compile,
        clock: Callable[[], float],
        *,
        threads: int = 2,
        max_bytes: int = 128 * 1024**2,
        max_flights: int = 256,
        max_account_flights: int = 32,
        max_waiting: int = 1024,
        pool: Executor | None = None,
    ) -> None:
        self._compile, self._clock, self._threads = compile, clock, threads
        self._max_flights, self._max_account_flights, self._max_waiting = max_flights, max_account_flights, max_waiting
        self._entries = _Entries(max_bytes)
        self._flights: dict[Grammar, _Flight] = {}
        # Whose turn it is: the first account, which then goes to the end.
        self._queues: OrderedDict[str, deque[_Flight]] = OrderedDict()
        self._num_compiling = self._num_waiting = 0
        self._pool = pool or ThreadPoolExecutor(threads, "grammar", initializer=give_way)
        self.num_compiled = 0

    async def get(self, grammar: Grammar, account_id: str) -> Constraint:
        """A new sequence's constraint. Raises GrammarInvalid and GrammarsBusy."""
        known = self._known(grammar)
        if known is None:
            if self._num_waiting >= self._max_waiting:
                raise GrammarsBusy("too many requests wait for their grammars")
            flight = self._flights.get(grammar) or self._begin(grammar, account_id)
            known = await self._wait(flight)
        if isinstance(known, _Problem):
            raise GrammarInvalid(known.reason) if known.forget_at is None else GrammarsBusy(known.reason)
        return known.start()

    def close(self) -> None:
        """Nothing more is compiled; what is under way is not waited for."""
        self._pool.shutdown(wait=False, cancel_futures=True)

    def _known(self, grammar: Grammar) -> Prepared | _Problem | None:
        known = self._entries.get(grammar)
        if isinstance(known, _Problem):
            stale = known.forget_at is not None and known.forget_at <= self._clock()
        else:
            stale = known is not None and known.worn
        if stale:
            self._entries.drop(grammar)
            return None
        return known

    def _begin(self, grammar: Grammar, account_id: str) -> _Flight:
        queue = self._queues.get(account_id)
        if len(self._flights) >= self._max_flights or (queue and len(queue) >= self._max_account_flights):
            raise GrammarsBusy("too many different grammars wait to be compiled")
        flight = _Flight(grammar, account_id, asyncio.get_running_loop().create_future())
        self._flights[grammar] = flight
        self._queues.setdefault(account_id, deque()).append(flight)
        self._launch()
        return flight

    async def _wait(self, flight: _Flight) -> Prepared | _Problem:
        flight.num_waiting += 1
        self._num_waiting += 1
        try:
            return await asyncio.shield(flight.landed)
        finally:
            flight.num_waiting -= 1
            self._num_waiting -= 1
            if not flight.num_waiting and not flight.compiling and not flight.landed.done():
                del self._flights[flight.grammar]
                self._leave_queue(flight)

    def _leave_queue(self, flight: _Flight) -> None:
        queue = self._queues[flight.account_id]
        queue.remove(flight)
        if not queue:
            del self._queues[flight.account_id]

    def _launch(self) -> None:
        while self._queues and self._num_compiling < self._threads:
            account_id, queue = next(iter(self._queues.items()))
            flight = queue[0]
            self._queues.move_to_end(account_id)
            self._leave_queue(flight)
            flight.compiling = True
            self._num_compiling += 1
            work = asyncio.get_running_loop().run_in_executor(self._pool, self._compile, flight.grammar)
            work.add_done_callback(functools.partial(self._landed, flight))

    def _landed(self, flight: _Flight, work: asyncio.Future[tuple[Prepared, int]]) -> None:
        self._num_compiling -= 1
        del self._flights[flight.grammar]
        value, size = self._outcome(work)
        self._entries.put(flight.grammar, value, size)
        if not flight.landed.done():
            flight.landed.set_result(value)
        self._launch()

    def _outcome(self, work: asyncio.Future[tuple[Prepared, int]]) -> tuple[Prepared | _Problem, int]:
        if work.cancelled():
            return _Problem("this runtime is stopping", self._clock() + PASSING_S), 0
        error = work.exception()
        if error is None:
            self.num_compiled += 1
            return work.result()
        if isinstance(error, GrammarInvalid):
            return _Problem(str(error), None if error.lasting else self._clock() + PASSING_S), 0
        logger.error("a grammar could not be compiled", exc_info=error)
        return _Problem("this runtime failed to compile it", self._clock() + PASSING_S), 0
