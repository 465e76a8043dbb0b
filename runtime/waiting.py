"""The sequences that hold nothing on the device, account by account.

Accounts take turns by served tokens for their weight, so a busy account does not hold the others up; the order within
an account is its own affair (`account_queue.py`). The queue is bounded. When it is full, an account that uses less of
it, for its weight, than its heaviest user displaces that user's newest sequence, so that one account's flood is
answered with refusals to that account.
"""

import heapq
from collections.abc import Callable, Iterator

from runtime.account_queue import AccountQueue, Digest
from runtime.fairness import ServedTokens
from runtime.protocol import AdapterRef
from runtime.sequence import Sequence


class QueueFull(Exception):
    """`max_waiting` sequences wait already and none may be displaced for this one."""


class WaitingQueue:
    """Holds a sequence from `add` or `put_back` until `start` or `remove`."""

    def __init__(self, max_waiting: int) -> None:
        self._max_waiting = max_waiting
        self._accounts: dict[str, AccountQueue] = {}
        self._by_digest: dict[str, dict[int, Sequence]] = {}
        self._served_accounts: ServedTokens[str] = ServedTokens()
        self._served_adapters: ServedTokens[tuple[str, Digest]] = ServedTokens()
        self._size = 0

    def __len__(self) -> int:
        return self._size

    def __iter__(self) -> Iterator[Sequence]:
        for account in self._accounts.values():
            yield from account.sequences

    def add(self, sequence: Sequence) -> Sequence | None:
        """Queues a new sequence; returns the one that it displaced, if any. Raises QueueFull."""
        displaced = None
        if self._size >= self._max_waiting:
            displaced = self._displaceable(sequence)
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
            account = self._accounts[sequence.account_id] = AccountQueue(sequence.weight)
        if sequence.digest not in account:
            others = [(sequence.account_id, digest) for digest in account.digests]
            self._served_adapters.join((sequence.account_id, sequence.digest), others)
        account.add(sequence)
        self._size += 1
        if sequence.digest is not None:
            self._by_digest.setdefault(sequence.digest, {})[sequence.number] = sequence

    def remove(self, sequence: Sequence) -> None:
        """Takes a sequence out, wherever it stands. Raises KeyError when it does not wait."""
        self._accounts[sequence.account_id].remove(sequence)
        self._removed(sequence)

    def start(self, sequence: Sequence) -> None:
        """Takes out a sequence whose turn has come. Raises KeyError when it does not wait."""
        self._accounts[sequence.account_id].start(sequence)
        self._removed(sequence)

    def charge(self, account_id: str, digest: Digest, tokens: float, weight: float = 1.0) -> None:
        """An account of this weight was served, with this adapter."""
        self._served_accounts.charge(account_id, tokens / weight)
        self._served_adapters.charge((account_id, digest), tokens)

    def candidates(self, admissible: Callable[[Digest], bool]) -> Iterator[Sequence]:
        """In turn, the sequences that may start. The caller starts and charges each before it asks for the next,
        or stops asking."""
        turns = [self._turn(account_id) for account_id in self._accounts]
        heapq.heapify(turns)
        while turns:
            *_, account_id = heapq.heappop(turns)
            head = self._accounts[account_id].next(admissible, self._served(account_id))
            if head is None:
                continue
            yield head
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
        columns = [
            self._accounts[account_id].adapters_in_turn() for account_id in sorted(self._accounts, key=self._turn)
        ]
        found: dict[str, AdapterRef] = {}
        for row in range(max(map(len, columns), default=0)):
            for column in columns:
                adapter = column[row].adapter if row < len(column) else None
                if adapter is not None:
                    found.setdefault(adapter.digest, adapter)
        return list(found.values())

    def _removed(self, sequence: Sequence) -> None:
        self._size -= 1
        if not self._accounts[sequence.account_id].size:
            del self._accounts[sequence.account_id]
        if sequence.digest is not None:
            same = self._by_digest[sequence.digest]
            del same[sequence.number]
            if not same:
                del self._by_digest[sequence.digest]

    def _turn(self, account_id: str) -> tuple[float, int, str]:
        """Sorts accounts: least served for their weight first, then the one with the oldest seat."""
        return self._served_accounts[account_id], self._accounts[account_id].oldest, account_id

    def _served(self, account_id: str) -> Callable[[Digest], float]:
        return lambda digest: self._served_adapters[account_id, digest]

    def _displaceable(self, sequence: Sequence) -> Sequence | None:
        own = self._accounts.get(sequence.account_id)
        share = (1 if own is None else own.size + 1) / sequence.weight
        heaviest = max(self._accounts.values(), key=lambda account: account.size / account.weight)
        return heaviest.newest_fresh() if (heaviest.size - 1) / heaviest.weight >= share else None
