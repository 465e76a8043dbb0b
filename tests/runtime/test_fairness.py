"""Whose turn it is."""

from itertools import count

from hypothesis import given
from hypothesis import strategies as st

from runtime.fairness import ServedTokens
from runtime.protocol import SamplingParams
from runtime.sequence import Sequence
from runtime.waiting import QueueFull, WaitingQueue
from tests.runtime.fakes import ref

_numbers = count(1)


def sequence(account: str, adapter: str | None = None) -> Sequence:
    number = next(_numbers)
    adapter_ref = None if adapter is None else ref(adapter)
    return Sequence(number, 1, number, account, adapter_ref, SamplingParams(), 0, [1], 1, 0.0, 9.0)


def serve(queue: WaitingQueue, tokens: float, turns: int) -> list[Sequence]:
    """Takes the next one `turns` times, each served `tokens`."""
    served = []
    for _ in range(turns):
        head = next(queue.candidates(lambda digest: True))
        queue.start(head)
        queue.charge(head.account_id, head.digest, tokens)
        served.append(head)
    return served


def test_accounts_take_turns_whatever_they_queue() -> None:
    queue = WaitingQueue(100)
    for _ in range(20):
        queue.add(sequence("busy"))
    for _ in range(3):
        queue.add(sequence("calm"))
    assert [item.account_id for item in serve(queue, 10, 6)] == ["busy", "calm"] * 3


def test_an_account_with_short_answers_gets_more_turns() -> None:
    queue = WaitingQueue(100)
    for _ in range(20):
        queue.add(sequence("long"))
        queue.add(sequence("short"))
    turns = {"long": 0, "short": 0}
    for _ in range(22):
        head = next(queue.candidates(lambda digest: True))
        queue.start(head)
        queue.charge(head.account_id, head.digest, 100 if head.account_id == "long" else 10)
        turns[head.account_id] += 1
    assert turns["short"] >= 8 * turns["long"]


def test_adapters_of_one_account_take_turns() -> None:
    queue = WaitingQueue(100)
    for _ in range(10):
        queue.add(sequence("a", "hot"))
    queue.add(sequence("a", "cold"))
    queue.add(sequence("a"))
    assert {item.digest for item in serve(queue, 10, 3)} == {"hot", "cold", None}


def test_a_pause_earns_no_credit() -> None:
    queue = WaitingQueue(100)
    queue.add(sequence("idler"))
    serve(queue, 1, 1)
    for _ in range(10):
        queue.add(sequence("worker"))
    serve(queue, 100, 5)
    for _ in range(10):
        queue.add(sequence("idler"))
    served = [item.account_id for item in serve(queue, 100, 4)]
    assert served.count("idler") <= 2


def test_leaving_and_coming_back_sheds_no_debt() -> None:
    queue = WaitingQueue(100)
    queue.add(sequence("other"))
    queue.add(sequence("greedy"))
    greedy = next(item for item in queue if item.account_id == "greedy")
    queue.remove(greedy)
    queue.charge("greedy", None, 1000)
    queue.add(sequence("greedy"))
    queue.add(sequence("other"))
    assert [item.account_id for item in serve(queue, 10, 3)] == ["other", "other", "greedy"]


def test_inadmissible_adapters_hold_nobody_up() -> None:
    queue = WaitingQueue(100)
    blocked = sequence("a", "absent")
    queue.add(blocked)
    behind = sequence("a", "here")
    queue.add(behind)
    other = sequence("b")
    queue.add(other)
    seen = []
    for item in queue.candidates(lambda digest: digest != "absent"):
        queue.start(item)
        queue.charge(item.account_id, item.digest, 1)
        seen.append(item)
    assert set(seen) == {behind, other}
    assert list(queue) == [blocked]


def test_loads_come_account_by_account() -> None:
    queue = WaitingQueue(100)
    for name in ("a1", "a2", "a3"):
        queue.add(sequence("a", name))
    queue.add(sequence("b", "b1"))
    queue.add(sequence("b", "a1"))
    assert [adapter.digest for adapter in queue.adapters_in_turn()] == ["a1", "b1", "a2", "a3"]


def test_a_preempted_sequence_goes_back_to_its_place_beyond_the_bound() -> None:
    queue = WaitingQueue(1)
    first, second = sequence("a"), sequence("a")
    queue.add(second)
    queue.put_back(first)
    assert len(queue) == 2
    assert next(queue.candidates(lambda digest: True)) is first


def test_a_sequence_whose_answer_has_begun_is_not_displaced() -> None:
    queue = WaitingQueue(2)
    begun = [sequence("a"), sequence("a")]
    for item in begun:
        item.admitted_at = 1.0
        queue.put_back(item)
    queue.put_back(fresh := sequence("a"))
    assert queue.add(sequence("b")) is fresh
    try:
        queue.add(sequence("b"))
    except QueueFull:
        pass
    else:
        raise AssertionError("nobody may be displaced")


@given(st.lists(st.tuples(st.integers(0, 50), st.integers(1, 100)), max_size=300))
def test_counters_are_bounded(charges: list[tuple[int, int]]) -> None:
    served: ServedTokens[int] = ServedTokens(max_parties=8)
    for party, tokens in charges:
        served.charge(party, tokens)
        assert len(served) <= 8
