"""Priorities order an account's own work, starve none of it, and move nothing between accounts."""

from collections import Counter
from itertools import count

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from runtime import account_queue, running
from runtime.account_queue import STARTS_PER_ELDER
from runtime.protocol import MAX_PRIORITY, SamplingParams
from runtime.running import MOST_YIELDS, Running
from runtime.sequence import Sequence
from runtime.waiting import WaitingQueue
from tests.runtime.fakes import answer, ref, submit
from tests.runtime.rig import Rig

PRIORITY = st.integers(-MAX_PRIORITY, MAX_PRIORITY)


def sequence(number: int, priority: int = 0, account: str = "a", adapter: str | None = None) -> Sequence:
    adapter_ref = None if adapter is None else ref(adapter)
    return Sequence(number, 1, number, account, adapter_ref, SamplingParams(), 0, [1], 1, 0.0, 9.0, priority=priority)


def start_next(queue: WaitingQueue) -> Sequence:
    head = next(queue.candidates(lambda digest: True))
    queue.start(head)
    queue.charge(head.account_id, head.digest, 10)
    return head


@settings(deadline=None)
@given(st.lists(PRIORITY, min_size=1, max_size=60))
def test_lower_numbers_start_first_and_every_eighth_start_is_the_eldest(priorities: list[int]) -> None:
    queue = WaitingQueue(100)
    waiting = [sequence(number, priority) for number, priority in enumerate(priorities, 1)]
    for item in waiting:
        queue.add(item)
    for start in range(1, len(priorities) + 1):
        elder = start % STARTS_PER_ELDER == 0
        expected = min(waiting, key=lambda item: item.number if elder else (item.priority, item.number))
        waiting.remove(expected)
        assert start_next(queue) is expected


@settings(deadline=None)
@given(
    older=st.lists(PRIORITY, max_size=3),
    priority=PRIORITY,
    later=st.lists(PRIORITY, min_size=4 * STARTS_PER_ELDER, max_size=4 * STARTS_PER_ELDER),
)
def test_nothing_starves(older: list[int], priority: int, later: list[int]) -> None:
    assert starts_until_its_turn(older, priority, later) <= (len(older) + 1) * STARTS_PER_ELDER


def starts_until_its_turn(older: list[int], priority: int, later: list[int]) -> int:
    """Of the account's starts, with one of `later` arriving before each."""
    queue, numbers = WaitingQueue(1000), count(1)
    for one in older:
        queue.add(sequence(next(numbers), one))
    low = sequence(next(numbers), priority)
    queue.add(low)
    for start, one in enumerate(later, 1):
        queue.add(sequence(next(numbers), one))
        if start_next(queue) is low:
            return start
    raise AssertionError("it starved")


def test_control_without_the_elders_start_it_starves(monkeypatch: pytest.MonkeyPatch) -> None:
    flood = [-1] * 500
    assert starts_until_its_turn([0, 0], 1, flood) == 3 * STARTS_PER_ELDER
    monkeypatch.setattr(account_queue, "STARTS_PER_ELDER", 10**9)
    with pytest.raises(AssertionError, match="starved"):
        starts_until_its_turn([0, 0], 1, flood)


@settings(deadline=None)
@given(st.lists(st.tuples(st.sampled_from("abc"), PRIORITY), min_size=1, max_size=40))
def test_no_account_overtakes_another_by_priorities(arrivals: list[tuple[str, int]]) -> None:
    def turns(*, plain: bool) -> list[str]:
        queue = WaitingQueue(100)
        for number, (account, priority) in enumerate(arrivals, 1):
            queue.add(sequence(number, 0 if plain else priority, account))
        return [start_next(queue).account_id for _ in arrivals]

    assert turns(plain=False) == turns(plain=True)


@settings(deadline=None)
@given(st.lists(st.tuples(st.sampled_from("abc"), PRIORITY), min_size=1, max_size=12))
def test_who_gives_way_first_is_the_accounts_own_affair(arrivals: list[tuple[str, int]]) -> None:
    rows, plain = Running(), Running()
    for number, (account, priority) in enumerate(arrivals, 1):
        rows.add(sequence(number, priority, account))
        plain.add(sequence(number, 0, account))
    for _ in arrivals:
        own = list(rows)
        leaver = rows.take_newest()
        assert leaver.account_id == plain.take_newest().account_id
        mates = [item for item in own if item.account_id == leaver.account_id]
        assert leaver is max(mates, key=lambda item: (item.priority, item.number))


def yields(newcomers: int) -> int:
    """How often a sequence of low priority leaves its row when better ones keep coming, each for a while."""
    rows, low = Running(), sequence(1, 5)
    rows.add(low)
    for number in range(2, 2 + newcomers):
        rows.add(sequence(number, 0))
        leaver = rows.take_newest()
        if leaver is low:
            rows.remove(next(iter(rows)))
            rows.add(low)
    return low.num_yields


def test_a_sequence_yields_twice_and_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    assert yields(20) == MOST_YIELDS
    monkeypatch.setattr(running, "MOST_YIELDS", 10**9)
    assert yields(20) == 20


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(st.sampled_from("ab"), PRIORITY), min_size=1, max_size=14))
def test_the_other_accounts_see_the_same_steps(arrivals: list[tuple[str, int]]) -> None:
    """Requests of one shape and blocks for all: which account says how much in which step is not for priorities."""

    def steps(*, plain: bool) -> list[Counter[str]]:
        rig = Rig(num_blocks=256, max_running=2)
        for number, (account, priority) in enumerate(arrivals, 1):
            rig.submit(submit(number, account=account, priority=0 if plain else priority))
        seen = []
        while rig.engine.num_live:
            before = {key: len(rig.tokens(key[1])) for key in list(rig.outputs)}
            rig.step()
            said: Counter[str] = Counter()
            for key in list(rig.outputs):
                said[arrivals[key[1] - 1][0]] += len(rig.tokens(key[1])) - before.get(key, 0)
            seen.append(said)
        return seen

    assert steps(plain=False) == steps(plain=True)


def test_when_blocks_run_out_the_low_priority_gives_way_and_both_answers_stay_right() -> None:
    def preempted(first: int, second: int) -> tuple[int, int]:
        rig = Rig(num_blocks=12, max_running=4)
        requests = [submit(n, max_tokens=30, priority=p) for n, p in ((1, first), (2, second))]
        for request in requests:
            rig.submit(request)
        order = []
        while rig.engine.num_live:
            rig.step()
            order += [key[1] for key, said in rig.outputs.items() if said[-1].finish_reason and key[1] not in order]
        assert [rig.tokens(request.sequence_id) for request in requests] == [answer(item) for item in requests]
        assert rig.engine.stats().preemptions > 0
        return order[0], order[1]

    assert preempted(0, 0) == (1, 2)
    assert preempted(1, 0) == (2, 1)
    assert preempted(0, 1) == (1, 2)


def test_a_low_priority_ends_under_a_flood_of_better_ones_that_also_takes_its_blocks() -> None:
    rig = Rig(num_blocks=12, max_running=3, max_waiting=64)
    low = submit(1, max_tokens=24, priority=MAX_PRIORITY)
    rig.submit(low)
    for number in range(2, 400):
        rig.submit(submit(number, tuple(range(1, 9)), max_tokens=20, priority=-1))
        rig.step()
        if rig.outputs[1, 1] and rig.outputs[1, 1][-1].finish_reason:
            break
    assert rig.tokens(1) == answer(low)
    assert rig.engine.stats().preemptions > 0


def test_the_eldest_sequences_adapter_is_loaded_first_then_by_priority() -> None:
    queue = WaitingQueue(100)
    for number, (adapter, priority) in enumerate([("x", 9), ("y", 0), ("z", -5), ("x", -9)], 1):
        queue.add(sequence(number, priority, adapter=adapter))
    assert [item.digest for item in queue.adapters_in_turn()] == ["x", "z", "y"]


def test_a_full_queue_turns_the_last_in_rank_away() -> None:
    queue = WaitingQueue(3)
    arrivals = [sequence(1, 5), sequence(2, 0), sequence(3, 5)]
    for item in arrivals:
        queue.add(item)
    assert queue.add(sequence(4, account="b")) is arrivals[2]
