"""The engine one step ahead of what it knows: the same answers, the same books, whatever happens in between."""

import inspect
import logging
import random
from collections import Counter
from collections.abc import Callable
from types import ModuleType
from typing import Any

import pytest
from hypothesis import settings

from runtime.protocol import SamplingParams, Submit
from storage.packed import Packed
from tests.runtime import test_fairness, test_priorities, test_shares
from tests.runtime.fakes import EOS, FakeRunner, answer, ref, submit, tokens_of
from tests.runtime.fakes_ahead import AheadRunner
from tests.runtime.rig import Rig
from tests.runtime.test_engine_machine import EngineMachine, live
from tests.runtime.world import World


@pytest.fixture(autouse=True)
def quiet(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.CRITICAL, logger="runtime")


def ahead_runner(**options: Any) -> AheadRunner:
    return AheadRunner(**options)


def rig_ahead(**options: Any) -> tuple[Rig, AheadRunner]:
    rig = Rig(make=ahead_runner, **options)
    assert isinstance(rig.runner, AheadRunner)
    return rig, rig.runner


class AheadWorld(World):
    """Steps fail when they are launched, or when they are read."""

    def __init__(self) -> None:
        super().__init__(make=ahead_runner)

    def a_step_fails(self) -> None:
        runner = self.rig.runner
        assert isinstance(runner, AheadRunner)
        if runner.chance.random() < 0.5:
            super().a_step_fails()
            return
        runner.fail_finish = RuntimeError("planted")
        self.rig.step()
        runner.fail_finish = None


class AheadMachine(EngineMachine):
    def __init__(self) -> None:
        super().__init__()
        self.world = AheadWorld()


AheadMachine.TestCase.settings = settings(max_examples=100, stateful_step_count=40, deadline=None)
TestAheadMachine = AheadMachine.TestCase


def test_long_lives_in_which_everything_runs_out() -> None:
    seen: Counter[str] = Counter()
    for seed in range(20):
        world = AheadWorld()
        live(world, random.Random(seed), 300)
        world.finish()
        stats, runner = world.rig.engine.stats(), world.rig.runner
        assert isinstance(runner, AheadRunner)
        assert runner.num_finished == len(runner.flights)
        seen += Counter(preemptions=stats.preemptions, evictions=stats.evictions, tokens=stats.generated_tokens)
        seen += Counter(ahead=runner.num_ahead, pending=runner.num_pending, cached=stats.prefix_hit_tokens)
        for key in set(world.requests) - world.gone:
            last = world.rig.last(key[1], key[0])
            seen[last.failure.kind if last.failure else "answered"] += 1
    least = {"preemptions": 50, "evictions": 50, "tokens": 5000, "cached": 500, "answered": 300, "timeout": 50,
             "overloaded": 30, "ahead": 1000, "pending": 1000}  # fmt: skip
    assert {what: seen[what] for what in least if seen[what] < least[what]} == {}, seen


@pytest.mark.parametrize("seed", range(6))
def test_the_same_requests_get_the_same_answers_as_without_running_ahead(seed: int) -> None:
    """And in the same number of steps but for one at the end of each busy spell."""
    draw = random.Random(seed)
    requests = []
    for number in range(1, 25):
        adapter = draw.choice([None, None, ref("x", 8), ref("y", 16)])
        tokens = tokens_of(number, draw.randint(1, 30))
        request = submit(number, tokens, account=draw.choice("abc"), adapter=adapter, seed=number,
                         max_tokens=draw.randint(1, 20), weight=draw.choice((1.0, 3.0)))  # fmt: skip
        early = answer(request)[draw.randrange(request.sampling.max_tokens)] if draw.random() < 0.5 else None
        if early is not None:
            request = submit(number, tokens, account=request.account_id, adapter=adapter, seed=number,
                             max_tokens=request.sampling.max_tokens, stop=(early,), weight=request.weight)  # fmt: skip
        requests.append(request)

    def run(make: Any) -> tuple[dict[int, tuple[list[int], str | None]], int]:
        rig = Rig(make=make, num_blocks=24, max_running=6, step_tokens=32)
        arriving = list(requests)
        while arriving or rig.engine.num_live:
            for request in arriving[:2]:
                rig.submit(request)
            arriving = arriving[2:]
            for name in list(rig.loads.started):
                rig.load(name)
            rig.step()
        rig.run()
        return {
            request.sequence_id: (rig.tokens(request.sequence_id), rig.last(request.sequence_id).finish_reason)
            for request in requests
        }, rig.engine.stats().steps

    plain, plain_steps = run(FakeRunner)
    ahead, ahead_steps = run(ahead_runner)
    assert ahead == plain
    assert ahead_steps <= 1.35 * plain_steps
    assert {number: said for number, (said, _) in plain.items()} == {one.sequence_id: answer(one) for one in requests}


def _bodies(*modules: ModuleType) -> list[Callable[[], None]]:
    """The tests of these files that take nothing."""
    found = [member for module in modules for name, member in vars(module).items() if name.startswith("test_")]
    return [body for body in found if callable(body) and not inspect.signature(body).parameters]


@pytest.mark.parametrize("body", _bodies(test_fairness, test_shares, test_priorities))
def test_turns_shares_and_priorities_are_as_without_running_ahead(
    body: Callable[[], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    options = Rig.__init__.__kwdefaults__
    assert options is not None
    monkeypatch.setitem(options, "make", ahead_runner)
    body()


def test_a_step_is_launched_before_the_last_one_is_read() -> None:
    rig, runner = rig_ahead()
    rig.submit(submit(1, max_tokens=6))
    rig.step()
    assert (len(runner.flights), runner.num_finished, rig.tokens(1)) == (1, 0, [])
    rig.step()
    assert (len(runner.flights), runner.num_finished, len(rig.tokens(1))) == (2, 1, 1)
    rig.run()
    assert rig.tokens(1) == answer(submit(1, max_tokens=6))
    assert len(runner.flights) == 6, "a sequence whose length is known gets no row too many"


def test_a_sequence_that_ended_unforeseen_has_one_row_too_many_which_says_nothing() -> None:
    whole = answer(submit(1, max_tokens=8))
    rig, runner = rig_ahead()
    rig.submit(submit(1, max_tokens=8, stop=(whole[3],)))
    rig.run()
    stop = whole.index(whole[3])
    assert rig.tokens(1) == whole[:stop]
    assert rig.last(1).finish_reason == "stop"
    assert rig.last(1).completion_tokens == stop + 1
    assert len(runner.flights) == stop + 2
    assert rig.engine.stats().generated_tokens == stop + 1
    assert rig.engine.stats().free_blocks == 64


@pytest.mark.parametrize("steps", range(1, 6))
def test_an_abort_at_any_moment_frees_everything(steps: int) -> None:
    rig, _ = rig_ahead(num_blocks=8, max_running=2)
    rig.submit(submit(1, tokens_of(1, 12), adapter=ref("x"), max_tokens=9))
    for _ in range(40):
        for name in list(rig.loads.started):
            rig.load(name)
        rig.step()
        if rig.engine.stats().running:
            break
    for _ in range(steps - 1):
        rig.step()
    said = len(rig.outputs[1, 1])
    rig.engine.abort(1, 1)
    assert rig.engine.stats().free_blocks == 8
    assert all(slot.references == 0 for slot in rig.engine._rows.slots)
    other = submit(2, tokens_of(2, 20), max_tokens=9, seed=3)  # takes the very blocks, behind the step under way
    rig.submit(other)
    rig.run()
    assert rig.tokens(2) == answer(other)
    assert len(rig.outputs[1, 1]) == said


def test_a_deadline_passes_while_a_step_is_under_way() -> None:
    rig, _ = rig_ahead()
    rig.submit(submit(1, max_tokens=50, timeout_s=0.055))
    rig.run()
    last = rig.last(1)
    assert last.failure is not None
    assert last.failure.kind == "timeout"
    assert last.completion_tokens == len(rig.tokens(1)) > 0
    assert rig.tokens(1) == answer(submit(1, max_tokens=50))[: len(rig.tokens(1))]


def test_rows_that_depend_on_the_host_are_read_before_the_next_step() -> None:
    rig, runner = rig_ahead()
    sampling = SamplingParams(max_tokens=5, seed=7, repetition_penalty=1.2)
    rig.submit(Submit(1, "a", (1, 2, 3), sampling, None, None, 1000.0))
    rig.submit(submit(2, max_tokens=5))
    rig.run()
    assert runner.num_pending == 0
    assert rig.tokens(1) == rig.tokens(2) == answer(submit(2, max_tokens=5))
    rig.submit(submit(3, max_tokens=5))
    rig.run()
    assert runner.num_pending == 4


def test_numbers_that_overflow_end_their_own_sequences_only() -> None:
    rig, runner = rig_ahead()
    rig.submit(submit(1, adapter=ref("x"), max_tokens=30))
    rig.submit(submit(2, max_tokens=30))
    while not rig.tokens(1):
        for name in list(rig.loads.started):
            rig.load(name)
        rig.step()
    runner.broken_adapters = {"x"}
    rig.run()
    failure = rig.last(1).failure
    assert failure is not None
    assert failure.kind == "adapter_corrupt"
    assert rig.tokens(2) == answer(submit(2, max_tokens=30))


def test_a_step_that_fails_when_it_is_read_ends_its_sequences_once() -> None:
    rig, runner = rig_ahead()
    rig.submit(submit(1, max_tokens=30))
    rig.step()
    rig.step()
    runner.fail_finish = RuntimeError("planted")
    rig.step()
    rig.run()
    failure = rig.last(1).failure
    assert failure is not None
    assert failure.kind == "internal"
    rig.submit(submit(2, max_tokens=3))
    rig.run()
    assert rig.tokens(2) == answer(submit(2, max_tokens=3))


def test_the_models_own_end_is_noticed_one_step_late() -> None:
    rig, _ = rig_ahead()

    def says(tokens: list[int], adapter: str, seed: int) -> int:
        return EOS if len(tokens) == 5 else 1

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("tests.runtime.fakes_ahead.next_token", says)
        rig.submit(submit(1, max_tokens=9))
        rig.run()
    assert rig.tokens(1) == [1, 1]
    assert rig.last(1).finish_reason == "stop"


def test_a_step_that_only_copies_says_so() -> None:
    rig, runner = rig_ahead()
    rig.submit(submit(1, adapter=ref("x"), max_tokens=3))
    rig.step()
    rig.load("x")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(runner, "poll_adapter", lambda slot: False)
        assert [rig.engine.step().only_copies for _ in range(3)] == [True] * 3
        rig.submit(submit(2, max_tokens=1))
        assert [rig.engine.step().only_copies for _ in range(4)] == [False, False, True, True]
    rig.run()
    assert rig.tokens(1) == answer(submit(1, adapter=ref("x"), max_tokens=3))
    plain = Rig(copy_bytes=100)
    plain.submit(submit(1, adapter=ref("x"), max_tokens=3))
    plain.step()
    plain.load("x")
    assert not any(plain.engine.step().only_copies for _ in range(6)), "slices are written by steps, at once"


def test_a_crowd_of_adapters_begins_a_few_each_step() -> None:
    """One at least, and no more bytes than running sequences bear without noticing."""
    rig, runner = rig_ahead()
    begun, begin = list[int](), runner.begin_adapter

    def note(slot: int, row_offset: int, packed: Packed) -> None:
        begun.append(packed.header.payload_bytes)
        begin(slot, row_offset, packed)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(runner, "begin_adapter", note)
        patch.setattr(runner, "poll_adapter", lambda slot: False)
        patch.setattr("runtime.residency.BESIDE_BYTES", 1)
        for index, name in enumerate("wxyz"):
            rig.submit(submit(index, adapter=ref(name), max_tokens=3))
        rig.step()
        for name in "wxyz":
            rig.load(name)
        for steps in range(1, 4):
            rig.step()
            assert len(begun) == steps
        patch.setattr("runtime.residency.BESIDE_BYTES", 100 * max(begun))
        rig.step()
        assert len(begun) == 4
    rig.run()
    assert rig.tokens(3) == answer(submit(3, adapter=ref("z"), max_tokens=3))
