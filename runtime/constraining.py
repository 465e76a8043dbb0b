"""Sequences with a grammar on their way to the engine: not there before the grammar is compiled.

    begin ──> compiling ──> hand_over (the engine answers from now on) | turn_away (a typed failure)
                  └──stop: aborted, or its connection closed; neither is called

One task per sequence, on the event loop, known by connection and id. Their number is bounded by the cache's own.
"""

import asyncio
from collections.abc import Callable
from typing import Final

from runtime.errors import GrammarInvalid, GrammarsBusy
from runtime.grammars.cache import GrammarCache
from runtime.grammars.constraint import Constraint
from runtime.protocol import Failure, Grammar, Submit

_RETRY_AFTER_S: Final = 1.0

Key = tuple[int, int]
HandOver = Callable[[Constraint, float], None]
TurnAway = Callable[[Failure], None]


class Constraining:
    """`tasks` owns the work. Without `grammars` no grammar can be had."""

    def __init__(self, grammars: GrammarCache | None, clock: Callable[[], float], tasks: asyncio.TaskGroup) -> None:
        self._grammars, self._clock, self._tasks = grammars, clock, tasks
        self._under_way: dict[Key, asyncio.Task[None]] = {}

    def begin(self, key: Key, request: Submit, grammar: Grammar, hand_over: HandOver, turn_away: TurnAway) -> None:
        """Calls one of the two, once: `hand_over` with the constraint and the time of arrival."""
        work = self._constrain(key, request, grammar, hand_over, turn_away)
        self._under_way[key] = self._tasks.create_task(work)

    def stop(self, key: Key) -> None:
        """Neither is called any more. Unknown keys are ignored."""
        task = self._under_way.pop(key, None)
        if task is not None:
            task.cancel()

    def stop_all(self) -> None:
        """The service ends."""
        for key in list(self._under_way):
            self.stop(key)

    async def _constrain(
        self, key: Key, request: Submit, grammar: Grammar, hand_over: HandOver, turn_away: TurnAway
    ) -> None:
        arrived_at = self._clock()
        try:
            constraint = await self._compiled(request, grammar)
        except TimeoutError:
            turn_away(Failure("timeout", "the deadline passed"))
        except GrammarInvalid as error:
            turn_away(Failure("grammar", str(error)))
        except GrammarsBusy as error:
            turn_away(Failure("overloaded", str(error), _RETRY_AFTER_S))
        else:
            hand_over(constraint, arrived_at)
        finally:
            # After `stop` the key may be another sequence's.
            if self._under_way.get(key) is asyncio.current_task():
                del self._under_way[key]

    async def _compiled(self, request: Submit, grammar: Grammar) -> Constraint:
        if self._grammars is None:
            raise GrammarInvalid("this runtime has no grammars")
        # A deadline that is no time ends it here as it would in the engine.
        async with asyncio.timeout(request.timeout_s if request.timeout_s > 0 else 0):
            return await self._grammars.get(grammar, request.account_id)
