"""Anything in any order: arrivals, aborts, loads, failures, evictions, preemptions, deadlines, lost connections.

Hypothesis finds short orders that break something; the seeded runs are long, so that everything that is scarce runs
out many times, and they assert that it did.
"""

import logging
import random
from collections import Counter
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from tests.runtime.world import ADAPTERS, World

OWNERS, ACCOUNTS, CHOICES = (1, 2), "abc", (None, None, *ADAPTERS)
PRIORITIES, WEIGHTS = (0, 0, 0, -100, -1, 1, 100), (1.0, 1.0, 1.0, 0.01, 3.0, 100.0)
TIMEOUTS, SECONDS = (0.5, 5.0, 1e6, 1e6, 1e6), (0.01, 0.01, 0.3, 3.0)


@pytest.fixture(autouse=True)
def quiet(caplog: pytest.LogCaptureFixture) -> None:
    """Planted failures are logged with their tracebacks; thousands of them."""
    caplog.set_level(logging.CRITICAL, logger="runtime")


class EngineMachine(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.world = World()

    @rule(
        owner=st.sampled_from(OWNERS),
        account=st.sampled_from(ACCOUNTS),
        adapter=st.sampled_from(CHOICES),
        length=st.integers(1, 40),
        max_tokens=st.integers(1, 30),
        timeout_s=st.sampled_from(TIMEOUTS),
        common=st.integers(0, 40),
        priority=st.sampled_from(PRIORITIES),
        weight=st.sampled_from(WEIGHTS),
    )
    def arrive(self, **request: Any) -> None:
        self.world.arrive(**request)

    @rule(which=st.integers(0, 100))
    def abort(self, which: int) -> None:
        self.world.abort(which)

    @rule(owner=st.sampled_from(OWNERS))
    def connection_closes(self, owner: int) -> None:
        self.world.connection_closes(owner)

    @precondition(lambda self: self.world.rig.loads.started)
    @rule(which=st.integers(0, 10))
    def load_arrives(self, which: int) -> None:
        self.world.load_arrives(which)

    @precondition(lambda self: self.world.rig.loads.started)
    @rule(which=st.integers(0, 10))
    def load_fails(self, which: int) -> None:
        self.world.load_fails(which)

    @precondition(lambda self: bool(set(self.world.rig.loads.stopping) & set(self.world.rig.loads.started)))
    @rule(which=st.integers(0, 10))
    def load_stops(self, which: int) -> None:
        self.world.load_stops(which)

    @rule(adapter=st.sampled_from(list(ADAPTERS)))
    def forget(self, adapter: str) -> None:
        self.world.forget(adapter)

    @rule(count=st.integers(1, 8), seconds=st.sampled_from(SECONDS))
    def step(self, count: int, seconds: float) -> None:
        self.world.step(count, seconds)

    @rule()
    def a_step_fails(self) -> None:
        self.world.a_step_fails()

    @rule(adapter=st.sampled_from(["", *ADAPTERS]))
    def numbers_overflow(self, adapter: str) -> None:
        self.world.numbers_overflow(adapter)

    @invariant()
    def bounds_hold(self) -> None:
        self.world.check()

    def teardown(self) -> None:
        self.world.finish()


EngineMachine.TestCase.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)
TestEngineMachine = EngineMachine.TestCase


def live(world: World, draw: random.Random, events: int) -> None:
    """Mostly arrivals, loads and steps; now and then a misfortune."""
    for _ in range(events):
        match draw.choices(["arrive", "load", "step", "fail", "abort", "break", "overflow", "forget", "close",
                            "stop"], [30, 25, 40, 2, 3, 1, 1, 2, 0.5, 3])[0]:  # fmt: skip
            case "arrive":
                world.arrive(
                    draw.choice(OWNERS),
                    draw.choice(ACCOUNTS),
                    draw.choice(CHOICES),
                    draw.randint(1, 40),
                    draw.randint(1, 30),
                    draw.choice(TIMEOUTS),
                    draw.choice((0, 13, 28, 40)),
                    draw.choice(PRIORITIES),
                    draw.choice(WEIGHTS),
                )
            case "load" if world.rig.loads.started:
                world.load_arrives(draw.randint(0, 10))
            case "stop" if set(world.rig.loads.stopping) & set(world.rig.loads.started):
                world.load_stops(draw.randint(0, 10))
            case "fail" if world.rig.loads.started:
                world.load_fails(draw.randint(0, 10))
            case "step":
                world.step(draw.randint(1, 8), draw.choice(SECONDS))
            case "abort":
                world.abort(draw.randint(0, 10_000))
            case "break":
                world.a_step_fails()
            case "overflow":
                world.numbers_overflow(draw.choice(("", *ADAPTERS)))
            case "forget":
                world.forget(draw.choice(list(ADAPTERS)))
            case "close":
                world.connection_closes(draw.choice(OWNERS))
        world.check()


def test_long_lives_in_which_everything_runs_out() -> None:
    seen: Counter[str] = Counter()
    for seed in range(20):
        world = World()
        live(world, random.Random(seed), 300)
        world.finish()
        stats = world.rig.engine.stats()
        seen += Counter(preemptions=stats.preemptions, evictions=stats.evictions, tokens=stats.generated_tokens)
        seen["cached"] += stats.prefix_hit_tokens
        seen["yields"] += world.yields
        for key in set(world.requests) - world.gone:
            last = world.rig.last(key[1], key[0])
            seen[last.failure.kind if last.failure else "answered"] += 1
    least = {
        "preemptions": 50,
        "yields": 20,
        "evictions": 50,
        "tokens": 5000,
        "cached": 500,
        "answered": 300,
        "timeout": 50,
        "overloaded": 30,
    }
    assert {what: seen[what] for what in least if seen[what] < least[what]} == {}, seen
