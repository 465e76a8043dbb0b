"""The ledger against a model that keeps a plain list; giants; and every policy under the ledger's own rules."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from storage.ledger import Ledger
from storage.policies import POLICIES, PolicyName, make_policy

BUDGET = 20
keys = st.sampled_from("abcdefgh")


class LedgerMachine(RuleBasedStateMachine):
    """`self.idle` is in the order of eviction; `self.pinned` counts users."""

    def __init__(self) -> None:
        super().__init__()
        self.ledger = Ledger(BUDGET, giants_share=1.0)  # with the order of Lru alone
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


steps = st.lists(
    st.tuples(st.sampled_from(["add", "must not", "pin", "unpin", "doom", "remove"]), keys, st.integers(1, BUDGET + 2)),
    max_size=60,
)


@pytest.mark.parametrize("name", POLICIES)
@settings(max_examples=200, deadline=None)
@given(schedule=steps)
def test_under_any_policy_the_rules_hold(name: PolicyName, schedule: list[tuple[str, str, int]]) -> None:
    """Budgets, pins and the policy's own books: whoever is evicted was there and idle, and room is always found."""
    ledger = Ledger(BUDGET, make_policy(name, BUDGET))
    pins: dict[str, int] = {}
    sizes: dict[str, int] = {}
    for verb, key, size in schedule:
        if verb in ("add", "must not") and key not in sizes:
            room = sum(sizes[each] for each in sizes if pins[each]) + size <= BUDGET
            evicted = ledger.add(key, size, must=verb == "add")
            assert (evicted is not None) <= room
            assert verb == "must not" or (evicted is not None) == room
            for gone in evicted or ():
                assert pins.pop(gone) == 0
                del sizes[gone]
            if evicted is not None:
                pins[key], sizes[key] = 1, size
        elif verb == "pin" and key in sizes:
            ledger.pin(key)
            pins[key] += 1
        elif verb == "unpin" and pins.get(key):
            pins[key] -= 1
            if ledger.unpin(key):
                assert pins.pop(key) == 0
                del sizes[key]
        elif verb == "doom":
            if ledger.doom(key):
                assert pins.pop(key) == 0
                del sizes[key]
        elif verb == "remove" and key in sizes:
            ledger.remove(key)
            del pins[key], sizes[key]
        assert ledger.used_bytes == sum(sizes.values()) <= BUDGET
        assert ledger.pinned_bytes == sum(sizes[each] for each in sizes if pins[each])
        assert {each: ledger.pins(each) for each in ledger.keys} == pins


def idle(ledger: Ledger, key: str, size: int, *, must: bool = True) -> list[str] | None:
    evicted = ledger.add(key, size, must=must)
    if evicted is not None:
        ledger.unpin(key)
    return evicted


def crowd(ledger: Ledger, count: int = 100, size: int = 10) -> list[str]:
    names = [f"small-{number}" for number in range(count)]
    for name in names:
        assert idle(ledger, name, size) == []
    return names


@pytest.mark.parametrize("name", POLICIES)
def test_giants_do_not_flush_the_small_ones(name: PolicyName) -> None:
    """A hundred small ones fill the tier; ten giants come one after the other, each asked for once."""
    ledger = Ledger(1000, make_policy(name, 1000))
    names = crowd(ledger)
    for number in range(10):
        assert idle(ledger, f"giant-{number}", 200) is not None
    assert sum(each in ledger for each in names) == 80
    control = Ledger(1000, make_policy(name, 1000), giants_share=1.0)
    crowd(control)
    for number in range(10):
        idle(control, f"giant-{number}", 200)
    if name == "lru":
        assert sum(each in control for each in names) == 0


def test_a_giant_beyond_its_share_goes_first() -> None:
    ledger = Ledger(1000)
    crowd(ledger, 40)
    idle(ledger, "giant-a", 300)
    idle(ledger, "giant-b", 300)
    assert idle(ledger, "small", 10) == ["giant-a"]
    crowd(ledger, 0)
    assert [idle(ledger, f"late-{number}", 29) for number in range(10)] == [[]] * 10


def test_what_is_free_a_giant_may_take() -> None:
    ledger = Ledger(1000)
    assert idle(ledger, "giant-a", 450, must=False) == []
    assert idle(ledger, "giant-b", 450, must=False) == []
    assert idle(ledger, "giant-c", 450, must=False) == ["giant-a"]


def test_a_tier_that_can_do_without_lets_no_giant_push_small_ones_out() -> None:
    ledger = Ledger(1000)
    names = crowd(ledger)
    assert idle(ledger, "giant", 300, must=False) is None
    assert all(each in ledger for each in names)
    assert len(idle(ledger, "within its share", 200, must=False) or ()) == 20
    assert idle(ledger, "one more", 200, must=False) == ["within its share"]
    assert len(idle(ledger, "must", 300) or ()) == 11  # one giant and what was lacking
