"""The sequences that hold nothing on the device: one queue for each account and adapter, in the order of arrival.

Accounts take turns by served tokens, and within an account its adapters do; so neither a busy account nor a busy
adapter holds the others up. The queue is bounded. When it is full, an account that uses less of it than its heaviest
user displaces that user's newest sequence, so that one account's flood is answered with refusals to that account.
"""

import bisect
import heapq
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from runtime.fairness import ServedTokens
from runtime.protocol import AdapterRef
from runtime.sequence import Sequence

Digest = str | None


@dataclass(eq=False, slots=True)
class _Account:
    queues: dict[Digest, list[Sequence]] = field(default_factory=dict)
    size: int = 0


class QueueFull(Exception):
    """`max_waiting` sequences wait already and none may be displaced for this one."""


class WaitingQueue:
    """Holds a sequence from `add` or `put_back` until `remove`."""

    def __init__(self, max_waiting: int) -> None:
        self._max_waiting = max_waiting
        self._accounts: dict[str, _Account] = {}
        self._by_digest: dict[str, dict[int, Sequence]] = {}
        self._served_accounts: ServedTokens[str] = ServedTokens()
        self._served_adapters: ServedTokens[tuple[str, Digest]] = ServedTokens()
        self._size = 0

    def __len__(self) -> int:
        return self._size

    def __iter__(self) -> Iterator[Sequence]:
        for account in self._accounts.values():
            for queue in account.queues.values():
                yield from queue

    def add(self, sequence: Sequence) -> Sequence | None:
        """Queues a new sequence; returns the one that it displaced, if any. Raises QueueFull."""
        displaced = None
        if self._size >= self._max_waiting:
            displaced = self._displaceable(sequence.account_id)
            if displaced is None:
                raise QueueFull
            self.remove(displaced)
        self.put_back(sequence)
        return displaced

    def put_back(self, sequence: Sequence) -> None:
        """Queues a sequence whatever the bound: a preempted one, whose answer has begun, is never refused."""
        account = self._accounts.get(sequence.account_id)
        if account is None:
            self._served_accounts.join(sequence.account_id, self._accounts)
            account = self._accounts[sequence.account_id] = _Account()
        queue = account.queues.get(sequence.digest)
        if queue is None:
            others = [(sequence.account_id, digest) for digest in account.queues]
            self._served_adapters.join((sequence.account_id, sequence.digest), others)
            queue = account.queues[sequence.digest] = []
        bisect.insort(queue, sequence, key=lambda item: item.number)
        account.size += 1
        self._size += 1
        if sequence.digest is not None:
            self._by_digest.setdefault(sequence.digest, {})[sequence.number] = sequence

    def remove(self, sequence: Sequence) -> None:
        """Takes a sequence out, wherever it stands. Raises KeyError when it does not wait."""
        account = self._accounts[sequence.account_id]
        queue = account.queues[sequence.digest]
        index = bisect.bisect_left(queue, sequence.number, key=lambda item: item.number)
        if index == len(queue) or queue[index] is not sequence:
            raise KeyError(sequence.number)
        del queue[index]
        account.size -= 1
        self._size -= 1
        if not queue:
            del account.queues[sequence.digest]
        if not account.queues:
            del self._accounts[sequence.account_id]
        if sequence.digest is not None:
            same = self._by_digest[sequence.digest]
            del same[sequence.number]
            if not same:
                del self._by_digest[sequence.digest]

    def charge(self, account_id: str, digest: Digest, tokens: float) -> None:
        """An account was served, with this adapter."""
        self._served_accounts.charge(account_id, tokens)
        self._served_adapters.charge((account_id, digest), tokens)

    def candidates(self, admissible: Callable[[Digest], bool]) -> Iterator[Sequence]:
        """In turn, the sequences that may start. The caller removes and charges each before it asks for the next,
        or stops asking."""
        turns = [self._turn(account_id) for account_id in self._accounts]
        heapq.heapify(turns)
        while turns:
            *_, account_id = heapq.heappop(turns)
            account = self._accounts[account_id]
            heads = [queue[0] for digest, queue in account.queues.items() if admissible(digest)]
            if not heads:
                continue
            yield min(heads, key=lambda head: (self._served_adapters[account_id, head.digest], head.number))
            if account_id in self._accounts:
                heapq.heappush(turns, self._turn(account_id))

    def with_adapter(self, digest: str) -> list[Sequence]:
        """Every sequence that waits with this adapter."""
        return list(self._by_digest.get(digest, {}).values())

    def has_adapter(self, digest: str) -> bool:
        """True when a sequence waits with this adapter."""
        return digest in self._by_digest

    def adapters_in_turn(self) -> list[AdapterRef]:
        """Adapters that somebody waits for, in the order in which they should come: account by account."""
        turns = sorted(self._accounts, key=self._turn)
        columns = [
            sorted((queue[0] for queue in self._accounts[account_id].queues.values()), key=lambda head: head.number)
            for account_id in turns
        ]
        found: dict[str, AdapterRef] = {}
        for row in range(max(map(len, columns), default=0)):
            for column in columns:
                adapter = column[row].adapter if row < len(column) else None
                if adapter is not None:
                    found.setdefault(adapter.digest, adapter)
        return list(found.values())

    def _turn(self, account_id: str) -> tuple[float, int, str]:
        """Sorts accounts: least served first, among equals the one whose sequence arrived first."""
        oldest = min(queue[0].number for queue in self._accounts[account_id].queues.values())
        return self._served_accounts[account_id], oldest, account_id

    def _displaceable(self, account_id: str) -> Sequence | None:
        own = self._accounts[account_id].size if account_id in self._accounts else 0
        heaviest = max(self._accounts.values(), key=lambda account: account.size)
        if heaviest.size <= own + 1:
            return None
        fresh = (item for queue in heaviest.queues.values() for item in queue if item.admitted_at is None)
        return max(fresh, key=lambda item: item.number, default=None)
