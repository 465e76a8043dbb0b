"""The ledger against a model that keeps a plain list."""

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from storage.ledger import Ledger

BUDGET = 20
keys = st.sampled_from("abcdefgh")


class LedgerMachine(RuleBasedStateMachine):
    """`self.idle` is in the order of eviction; `self.pinned` counts users."""

    def __init__(self) -> None:
        super().__init__()
        self.ledger = Ledger(BUDGET)
        self.sizes: dict[str, int] = {}
        self.pinned: dict[str, int] = {}
        self.idle: list[str] = []
        self.doomed: set[str] = set()

    @rule(key=keys, size=st.integers(1, BUDGET + 2))
    def add(self, key: str, size: int) -> None:
        if key in self.sizes:
            return
        expected: list[str] | None = None
        if sum(self.sizes[each] for each in self.pinned) + size <= BUDGET:
            expected = []
            while sum(self.sizes.values()) + size > BUDGET:
                expected.append(self.idle.pop(0))
                del self.sizes[expected[-1]]
        assert self.ledger.add(key, size) == expected
        if expected is not None:
            self.sizes[key], self.pinned[key] = size, 1

    @precondition(lambda self: self.sizes)
    @rule(data=st.data())
    def pin(self, data: st.DataObject) -> None:
        key = data.draw(st.sampled_from(sorted(self.sizes)))
        self.ledger.pin(key)
        self.pinned[key] = self.pinned.get(key, 0) + 1
        if key in self.idle:
            self.idle.remove(key)

    @precondition(lambda self: self.pinned)
    @rule(data=st.data())
    def unpin(self, data: st.DataObject) -> None:
        key = data.draw(st.sampled_from(sorted(self.pinned)))
        self.pinned[key] -= 1
        last = not self.pinned[key]
        assert self.ledger.unpin(key) == (last and key in self.doomed)
        if last:
            del self.pinned[key]
            if key in self.doomed:
                self.forget(key)
            else:
                self.idle.append(key)

    @rule(key=keys)
    def doom(self, key: str) -> None:
        assert self.ledger.doom(key) == (key in self.idle)
        if key in self.idle:
            self.idle.remove(key)
            self.forget(key)
        elif key in self.pinned:
            self.doomed.add(key)

    @precondition(lambda self: self.sizes)
    @rule(data=st.data())
    def remove(self, data: st.DataObject) -> None:
        key = data.draw(st.sampled_from(sorted(self.sizes)))
        self.ledger.remove(key)
        self.pinned.pop(key, None)
        if key in self.idle:
            self.idle.remove(key)
        self.forget(key)

    def forget(self, key: str) -> None:
        del self.sizes[key]
        self.doomed.discard(key)

    @invariant()
    def agrees(self) -> None:
        assert len(self.ledger) == len(self.sizes)
        assert self.ledger.used_bytes == sum(self.sizes.values()) <= BUDGET
        assert self.ledger.pinned_bytes == sum(self.sizes[each] for each in self.pinned)
        assert {each: self.ledger.pins(each) for each in self.sizes} == {
            each: self.pinned.get(each, 0) for each in self.sizes
        }


TestLedger = LedgerMachine.TestCase
TestLedger.settings = settings(max_examples=100, stateful_step_count=30, deadline=None)
