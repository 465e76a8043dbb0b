"""Who has been served how much: virtual token counters, after the VTC scheduler of fair LLM serving.

Every party (an account, or one adapter of an account) has a counter of the tokens it was served. Whoever has the
lowest counter is next. A party that comes back after a pause is lifted to the lowest counter among those who wait, so
that it can neither save up credit while away nor shed the debt of a burst.
"""

from collections import OrderedDict
from collections.abc import Iterable
from typing import Final, Generic, TypeVar

MAX_PARTIES: Final = 8192
PROMPT_TOKEN_COST: Final = 1.0
ANSWER_TOKEN_COST: Final = 2.0

Party = TypeVar("Party")


class ServedTokens(Generic[Party]):
    """Counters of at most `max_parties`; the one unused for longest is forgotten first."""

    def __init__(self, max_parties: int = MAX_PARTIES) -> None:
        self._counters: OrderedDict[Party, float] = OrderedDict()
        self._max_parties = max_parties
        self._floor = 0.0

    def __getitem__(self, party: Party) -> float:
        return self._counters.get(party, self._floor)

    def __len__(self) -> int:
        return len(self._counters)

    def join(self, party: Party, waiting: Iterable[Party]) -> None:
        """A party begins to wait; `waiting` are those who do already."""
        self._floor = max(self._floor, min((self[other] for other in waiting), default=self._floor))
        self._set(party, max(self[party], self._floor))

    def charge(self, party: Party, tokens: float) -> None:
        """The party was served."""
        self._set(party, self[party] + tokens)

    def _set(self, party: Party, counter: float) -> None:
        self._counters[party] = counter
        self._counters.move_to_end(party)
        while len(self._counters) > self._max_parties:
            self._counters.popitem(last=False)
