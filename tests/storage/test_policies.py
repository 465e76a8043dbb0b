"""The policies against models that are written for reading, and against each other on traces that tell them apart."""

import random
from collections import OrderedDict

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from storage.ledger import Ledger
from storage.policies import POLICIES, PolicyName, make_policy

requests = st.lists(st.integers(0, 12), max_size=150)
SIZES = (1, 2, 3, 5)
BUDGET = 12


def size_of(key: int) -> int:
    return SIZES[key % len(SIZES)]


def run(name: PolicyName, trace: list[int], budget: int = BUDGET, size: int | None = None) -> list[bool]:
    """Each request is let go at once, as a load that nobody holds. Returns hits."""
    ledger = Ledger(budget, make_policy(name, budget), giants_share=1.0)
    hits = []
    for key in map(str, trace):
        hits.append(key in ledger)
        if key in ledger:
            ledger.pin(key)
        else:
            assert ledger.add(key, size or size_of(int(key))) is not None
        ledger.unpin(key)
    return hits


def lru_model(trace: list[int]) -> list[bool]:
    there: OrderedDict[int, None] = OrderedDict()
    hits = []
    for key in trace:
        hits.append(key in there)
        there.pop(key, None)
        while sum(map(size_of, there)) + size_of(key) > BUDGET:
            there.popitem(last=False)
        there[key] = None
    return hits


def aged_model(trace: list[int], per_byte: bool) -> list[bool]:
    """Priorities in a plain dictionary; the lowest goes, the earliest asked for among equals."""
    priority: dict[int, tuple[float, int]] = {}
    uses: dict[int, int] = {}
    age, hits = 0.0, []
    for turn, key in enumerate(trace):
        hits.append(key in priority)
        if key not in priority:
            while sum(map(size_of, priority)) + size_of(key) > BUDGET:
                gone = min(priority, key=lambda each: priority[each])
                age = max(age, priority.pop(gone)[0])
                del uses[gone]
            uses[key] = 0
        uses[key] += 1
        priority[key] = (age + (uses[key] / size_of(key) if per_byte else uses[key]), turn)
    return hits


def s3fifo_model(trace: list[int]) -> list[bool]:
    """After the paper's pseudocode, with lists whose head is at 0."""
    small: list[int] = []
    main: list[int] = []
    ghost: list[int] = []
    frequency: dict[int, int] = {}
    hits = []

    def evict() -> None:
        if small and (sum(map(size_of, small)) >= BUDGET * 0.1 or not main):
            key = small.pop(0)
            if frequency[key] > 1:
                frequency[key] = 0
                main.append(key)
                return
            ghost.append(key)
            while sum(map(size_of, ghost)) > BUDGET * 0.9:
                ghost.pop(0)
            return
        key = main.pop(0)
        if frequency[key] > 0:
            frequency[key] -= 1
            main.append(key)

    for key in trace:
        hit = key in small or key in main
        hits.append(hit)
        if hit:
            frequency[key] = min(3, frequency[key] + 1)
            continue
        while sum(map(size_of, small + main)) + size_of(key) > BUDGET:
            evict()
        frequency[key] = 0
        if key in ghost:
            ghost.remove(key)
            main.append(key)
        else:
            small.append(key)
    return hits


@settings(max_examples=300, deadline=None)
@given(requests)
def test_each_policy_does_what_its_model_does(trace: list[int]) -> None:
    assert run("lru", trace) == lru_model(trace)
    assert run("lfu", trace) == aged_model(trace, per_byte=False)
    assert run("gdsf", trace) == aged_model(trace, per_byte=True)
    assert run("s3-fifo", trace) == s3fifo_model(trace)


def ratio(name: PolicyName, trace: list[int], budget: int, size: int | None = 1) -> float:
    hits = run(name, trace, budget, size)
    return sum(hits) / len(hits)


def test_a_scan_ruins_lru_and_nobody_else() -> None:
    """Ten popular ones, asked for three times, and then a long row of strangers, each asked for once."""
    trace = [key for turn in range(300) for key in (*[*range(10)] * 3, *range(100 + turn * 15, 115 + turn * 15))]
    assert abs(ratio("lru", trace, 20) - 20 / 45) < 0.01
    for name in ("lfu", "gdsf", "s3-fifo"):
        assert ratio(name, trace, 20) > 0.6, name  # thirty of forty-five is all there is


def test_lfu_forgets_what_was_popular_long_ago() -> None:
    yesterday, today = list(range(10)) * 50, list(range(100, 110)) * 30
    hits = run("lfu", yesterday + today, 10, 1)
    assert sum(hits[-100:]) >= 80


def test_gdsf_prefers_many_small_ones_to_one_large() -> None:
    rng = random.Random(1)
    trace = [rng.choice([0, *range(1, 13)]) for _ in range(3000)]
    large_first = Ledger(12, make_policy("gdsf", 12), giants_share=1.0)
    hits = 0
    for key in map(str, trace):
        hits += key in large_first
        if key in large_first:
            large_first.pin(key)
        else:
            large_first.add(key, 12 if key == "0" else 1)
        large_first.unpin(key)
    # The large one, asked for like any other, costs all twelve their place each time under LRU.
    control = Ledger(12, make_policy("lru", 12), giants_share=1.0)
    lru_hits = 0
    for key in map(str, trace):
        lru_hits += key in control
        if key in control:
            control.pin(key)
        else:
            control.add(key, 12 if key == "0" else 1)
        control.unpin(key)
    assert hits >= lru_hits


@pytest.mark.parametrize("name", POLICIES)
def test_a_key_in_use_is_never_named(name: PolicyName) -> None:
    policy = make_policy(name, 10)
    with pytest.raises(LookupError):
        policy.victim()
    for key in "abc":
        policy.enter(key, 1)
    with pytest.raises(LookupError):
        policy.victim()
    policy.idle("b")
    assert policy.victim() == "b"
    policy.use("b")
    with pytest.raises(LookupError):
        policy.victim()
    policy.idle("a")
    policy.idle("c")
    seen = {policy.victim()}
    policy.leave(next(iter(seen)))
    seen.add(policy.victim())
    assert seen == {"a", "c"}


@pytest.mark.parametrize("name", POLICIES)
def test_memory_of_a_policy_is_bounded_by_what_is_there(name: PolicyName) -> None:
    ledger = Ledger(50, make_policy(name, 50), giants_share=1.0)
    for number in range(20_000):
        key = str(number % 5000 if number % 2 else number % 40)
        if key in ledger:
            ledger.pin(key)
        else:
            ledger.add(key, 1)
        ledger.unpin(key)
    held = sum(len(part) for part in vars(ledger._policy).values() if hasattr(part, "__len__"))
    assert held < 50 * 12
