"""Accounts that always have work are served by their weights, whatever they ask for."""

from collections import Counter, defaultdict
from itertools import combinations, count

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from runtime.fairness import ANSWER_TOKEN_COST, PROMPT_TOKEN_COST, ServedTokens
from runtime.protocol import SamplingParams
from runtime.sequence import Sequence
from runtime.waiting import QueueFull, WaitingQueue
from tests.runtime.fakes import ref, submit, tokens_of
from tests.runtime.rig import Rig

ROWS, PROMPT, ANSWER = 3, 6, 8
# What one account's running sequences may still cost when its turn has passed: no counter can be further ahead.
BOUND = ROWS * (PROMPT_TOKEN_COST * PROMPT + ANSWER_TOKEN_COST * ANSWER)

WEIGHTS = st.lists(st.sampled_from([0.25, 0.5, 1.0, 1.5, 2.0, 4.0]), min_size=2, max_size=4)
LENGTHS = st.lists(st.tuples(st.integers(1, PROMPT), st.integers(1, ANSWER)), min_size=4, max_size=4)


def served(weights: list[float], lengths: list[tuple[int, int]], steps: int) -> defaultdict[int, float]:
    """What each account cost, in tokens, while all of them always had work; checks the bound after every step."""
    rig = Rig(num_blocks=256, max_running=ROWS)
    numbers = count(1)
    owner_of: dict[int, int] = {}
    cost: defaultdict[int, float] = defaultdict(float)
    began: set[int] = set()

    def arrive(account: int) -> None:
        number = next(numbers)
        prompt, answer = lengths[account]
        owner_of[number] = account
        name = f"{account}-{number % 2}"
        adapter = ref(name) if number % 3 == 0 else None
        rig.submit(
            submit(
                number,
                tokens_of(number, prompt),
                account=f"account {account}",
                adapter=adapter,
                max_tokens=answer,
                weight=weights[account],
                priority=number % 3,
            )
        )

    for account in range(len(weights)):
        for _ in range(2 * ROWS):
            arrive(account)
    for _ in range(steps):
        for name in list(rig.loads.started):
            rig.load(name)
        before = {key: len(said) for key, said in rig.outputs.items()}
        rig.step()
        for (owner, number), said in rig.outputs.items():
            for output in said[before.get((owner, number), 0) :]:
                account = owner_of[number]
                cost[account] += ANSWER_TOKEN_COST * len(output.token_ids)
                if number not in began:
                    began.add(number)
                    cost[account] += PROMPT_TOKEN_COST * lengths[account][0]
                if output.finish_reason is not None:
                    arrive(account)
        for first, second in combinations(range(len(weights)), 2):
            apart = abs(cost[first] / weights[first] - cost[second] / weights[second])
            assert apart <= BOUND / min(weights[first], weights[second]), (weights, cost)
    return cost


@settings(max_examples=25, deadline=None)
@given(WEIGHTS, LENGTHS)
def test_no_account_is_ahead_by_more_than_its_running_sequences(
    weights: list[float], lengths: list[tuple[int, int]]
) -> None:
    served(weights, lengths, 150)


def test_shares_become_the_weights() -> None:
    weights = [1.0, 2.0, 5.0]
    cost = served(weights, [(6, 8), (1, 2), (3, 5)], 1500)
    shares = [cost[account] / sum(cost.values()) for account in range(3)]
    assert shares == pytest.approx([weight / sum(weights) for weight in weights], rel=0.03)


def test_control_without_weights_the_bound_does_not_hold(monkeypatch: pytest.MonkeyPatch) -> None:
    charge = ServedTokens.charge

    def unweighted(self: ServedTokens[object], party: object, tokens: float) -> None:
        weight = 4.0 if party == "account 1" else 1.0
        charge(self, party, tokens * weight)

    monkeypatch.setattr(ServedTokens, "charge", unweighted)
    with pytest.raises(AssertionError):
        served([1.0, 4.0], [(3, 5), (3, 5)], 150)


def test_a_full_queue_is_shared_by_weight_too() -> None:
    rig = Rig(num_blocks=256, max_running=1, max_waiting=12)
    for number in range(1, 14):
        rig.submit(submit(number, account="heavy", weight=3.0, max_tokens=50))
        rig.step()
    for number in range(101, 113):
        rig.submit(submit(number, account="light", max_tokens=50))
    rig.step()
    waiting = Counter(item.account_id for item in rig.engine._scheduler._waiting)
    assert waiting == {"heavy": 9, "light": 3}
    refused = [key for key, said in rig.outputs.items() if said[-1].failure is not None]
    assert len(refused) == 12
    assert (1, 13) in refused  # the newest of the heavier one, displaced


def sequences(count: int, first: int, account: str, weight: float) -> list[Sequence]:
    numbers = range(first, first + count)
    return [Sequence(n, 1, n, account, None, SamplingParams(), 0, [1], 1, 0.0, 9.0, weight=weight) for n in numbers]


@pytest.mark.parametrize(
    ("own", "weight", "whose"),
    [(0, 1.0, "light"), (2, 1.0, "light"), (3, 1.0, None), (3, 0.5, None), (3, 2.0, "light"), (1, 0.5, None)],
)
def test_who_is_displaced_is_decided_by_weight(own: int, weight: float, whose: str | None) -> None:
    queue = WaitingQueue(12 + own)
    *waiting, late = sequences(own + 1, 100, "newcomer", weight)
    for item in (*sequences(8, 1, "heavy", 4.0), *sequences(4, 50, "light", 1.0), *waiting):
        queue.add(item)
    if whose is None:
        with pytest.raises(QueueFull):
            queue.add(late)
    else:
        displaced = queue.add(late)
        assert displaced is not None
        assert displaced.account_id == whose


def test_room_is_made_by_the_account_that_runs_most_for_its_weight() -> None:
    rig = Rig(num_blocks=256, max_running=6)
    for number in range(1, 5):
        rig.submit(submit(number, account="heavy", weight=4.0, max_tokens=40))
    for number in range(5, 7):
        rig.submit(submit(number, account="light", max_tokens=40))
    rig.step()
    rig.submit(submit(9, account="newcomer", max_tokens=4))
    rig.step()
    running = Counter(item.account_id for item in rig.engine._scheduler.running)
    assert running == {"heavy": 4, "light": 1, "newcomer": 1}


@pytest.mark.parametrize("wrong", [{"weight": 0.0}, {"weight": float("nan")}, {"weight": 1e9}, {"priority": 101}])
def test_a_weight_or_priority_out_of_range_is_refused(wrong: dict[str, float]) -> None:
    rig = Rig()
    rig.submit(submit(1, **wrong))  # type: ignore[arg-type]
    rig.step()
    failure = rig.last(1).failure
    assert failure is not None
    assert failure.kind == "internal"
