"""Sequences that wait for their grammars: each ends in one way, whatever is aborted, closed or late meanwhile."""

import asyncio
import contextlib
import threading
import time
from collections.abc import AsyncIterator
from functools import partial
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from runtime.client import RuntimeClient
from runtime.constraining import Constraining
from runtime.errors import GrammarInvalid
from runtime.grammars.cache import GrammarCache
from runtime.grammars.constraint import Constraint
from runtime.protocol import Failure, Grammar
from tests.runtime.fakes import FakeClock, submit
from tests.runtime.grammars.hands import Hands, Made, lark, turns
from tests.runtime.rig import Rig
from tests.runtime.serving import Serving, ask, sampling, serving


class Gate:
    """A compiler that waits for the test, in the cache's own threads."""

    def __init__(self) -> None:
        self.open = threading.Event()
        self.begun = threading.Semaphore(0)
        self.made: list[Made] = []

    def compile(self, grammar: Grammar) -> tuple[Made, int]:
        self.begun.release()
        assert self.open.wait(30)
        if grammar.source.startswith("bad"):
            raise GrammarInvalid("it is bad")
        self.made.append(Made(grammar))
        return self.made[-1], 0

    async def compiling(self) -> None:
        assert await asyncio.to_thread(self.begun.acquire, timeout=10)


@contextlib.asynccontextmanager
async def gated(tmp_path: Path, **limits: Any) -> AsyncIterator[tuple[Serving, Gate, RuntimeClient]]:
    gate = Gate()
    cache = GrammarCache(gate.compile, time.monotonic, **limits)
    try:
        async with serving(tmp_path, grammars=cache) as served, served.client() as client:
            await client.wait_ready(10)
            yield served, gate, client
    finally:
        gate.open.set()
        cache.close()


async def test_others_go_on_while_a_grammar_compiles(tmp_path: Path) -> None:
    async with gated(tmp_path) as (served, gate, client):
        waiting = asyncio.create_task(ask(client, grammar=lark("x"), sampling=sampling(6)))
        await gate.compiling()
        tokens, last = await ask(client)
        assert last.finish_reason == "length"
        assert not waiting.done()
        assert (await served.stats()).waiting == 0, "the engine has not heard of it"
        gate.open.set()
        tokens, last = await waiting
        assert (len(tokens), last.finish_reason) == (6, "length")
        assert gate.made[0].taken == tokens
        assert last.timing is not None
        assert last.timing.total_s > 0


async def test_its_deadline_runs_meanwhile(tmp_path: Path) -> None:
    async with gated(tmp_path) as (_, gate, client):
        _, last = await ask(client, grammar=lark("x"), timeout_s=0.05)
        assert last.failure is not None
        assert last.failure.kind == "timeout"
        gate.open.set()
        assert (await ask(client, grammar=lark("x")))[1].finish_reason == "length"


async def test_time_spent_compiling_counts() -> None:
    """The engine ends it by the same deadline, from arrival on."""
    hands, clock, rig = Hands(), FakeClock(), Rig()
    cache = GrammarCache(_never, clock, pool=hands)
    async with asyncio.TaskGroup() as tasks:
        request = msgspec.structs.replace(submit(1), timeout_s=10.0)
        constraining = Constraining(cache, clock, tasks)
        constraining.begin((1, 1), request, lark("x"), partial(rig.engine.submit, 1, request), _unexpected)
        await turns()
        clock.now += 9.0
        await hands.finish("x")
    rig.clock.now = clock.now
    rig.step(seconds=2.0)
    assert rig.tokens(1)
    rig.step()
    failure = rig.last(1).failure
    assert failure is not None
    assert failure.kind == "timeout"
    timing = rig.last(1).timing
    assert timing is not None
    assert timing.total_s == pytest.approx(11.0)


async def test_an_abort_while_compiling_leaves_nothing(tmp_path: Path) -> None:
    async with gated(tmp_path) as (served, gate, client):
        left = asyncio.create_task(ask(client, grammar=lark("x")))
        await gate.compiling()
        left.cancel()
        with pytest.raises(asyncio.CancelledError):
            await left
        while served.service._live():
            await asyncio.sleep(0.005)
        gate.open.set()
        assert (await ask(client, grammar=lark("x")))[1].finish_reason == "length"
        assert len(gate.made) == 1, "what was begun was not in vain"
        await served.until(running=0, waiting=0)
        assert len(served.runner.batches) == 4


async def test_a_gateway_that_goes_away_while_compiling(tmp_path: Path) -> None:
    async with gated(tmp_path) as (served, gate, client):
        async with served.client(gateway_id="leaves") as leaving:
            await leaving.wait_ready(10)
            asked = [asyncio.create_task(ask(leaving, grammar=lark(name))) for name in "xyz"]
            await gate.compiling()
        await asyncio.gather(*asked, return_exceptions=True)
        while served.service._live():
            await asyncio.sleep(0.005)
        gate.open.set()
        assert (await ask(client))[1].finish_reason == "length"
        assert len(served.runner.batches) == 4
        assert not served.service._constraining._under_way


async def test_what_cannot_be_is_a_typed_failure(tmp_path: Path) -> None:
    async with gated(tmp_path, threads=1, max_account_flights=1) as (served, gate, client):
        bad = asyncio.create_task(ask(client, grammar=lark("bad")))
        await gate.compiling()
        second = asyncio.create_task(ask(client, grammar=lark("second")))
        while len(served.service._constraining._under_way) < 2:
            await asyncio.sleep(0.005)
        _, third = await ask(client, grammar=lark("third"))
        assert third.failure is not None
        assert (third.failure.kind, third.failure.retry_after_s) == ("overloaded", 1.0)
        assert third.prompt_tokens == 3
        gate.open.set()
        failure = (await bad)[1].failure
        assert failure == Failure("grammar", "it is bad")
        assert (await second)[1].finish_reason == "length"


async def test_a_runtime_without_grammars_says_so(tmp_path: Path) -> None:
    async with serving(tmp_path) as served, served.client() as client:
        await client.wait_ready(10)
        failure = (await ask(client, grammar=lark("x")))[1].failure
        assert failure is not None
        assert failure.kind == "grammar"
        assert (await ask(client))[1].finish_reason == "length"


async def test_draining_lets_what_compiles_finish(tmp_path: Path) -> None:
    async with gated(tmp_path) as (served, gate, client):
        waiting = asyncio.create_task(ask(client, grammar=lark("x")))
        await gate.compiling()
        served.stop.set()
        while not served.service._draining:
            await asyncio.sleep(0.005)
        gate.open.set()
        assert (await waiting)[1].finish_reason == "length"


@given(
    moves=st.lists(
        st.one_of(
            st.tuples(st.just("begin"), st.integers(0, 3), st.integers(0, 2)),
            st.tuples(st.just("stop"), st.integers(0, 3), st.just(0)),
            st.tuples(st.just("finish"), st.integers(0, 3), st.integers(0, 1)),
            st.tuples(st.just("turn"), st.just(0), st.just(0)),
        ),
        max_size=30,
    )
)
@settings(max_examples=200, deadline=None)
def test_each_ends_in_one_way_at_every_moment(moves: list[tuple[str, int, int]]) -> None:
    asyncio.run(_play(moves))


async def _play(moves: list[tuple[str, int, int]]) -> None:
    hands = Hands()
    cache = GrammarCache(_never, FakeClock(), pool=hands, max_account_flights=2)
    ends: dict[int, list[str]] = {}
    of_key: dict[int, int] = {}
    async with asyncio.TaskGroup() as tasks:
        constraining = Constraining(cache, FakeClock(), tasks)
        for number, (move, one, other) in enumerate(moves):
            # As the service does: a key is used again only after its sequence has ended or was stopped.
            if move == "begin" and (one not in of_key or ends[of_key[one]]):
                of_key[one], ends[number] = number, []
                request = msgspec.structs.replace(submit(one), timeout_s=0.0 if other == 2 else 1000.0)
                grammar = lark(str(other))
                constraining.begin(
                    (1, one), request, grammar, partial(_handed, ends[number]), partial(_turned, ends[number])
                )
            elif move == "stop" and one in of_key:
                constraining.stop((1, one))
                ends[of_key.pop(one)].append("stopped")
            elif move == "finish" and hands.begun:
                name = hands.names[one % len(hands.names)]
                await hands.finish(name, GrammarInvalid("no") if other else None)
            elif move == "turn":
                await turns()
        await turns()
        while hands.begun:
            await hands.finish(hands.names[0])
    assert not constraining._under_way
    for said in ends.values():
        # What had been handed over or turned away may be stopped later, and then nothing more comes.
        assert said in (["handed"], ["turned"], ["stopped"], ["handed", "stopped"], ["turned", "stopped"])
    assert (cache._flights, cache._num_waiting) == ({}, 0)


def _handed(said: list[str], constraint: Constraint, arrived_at: float) -> None:
    said.append("handed")


def _turned(said: list[str], failure: Failure) -> None:
    said.append("turned")


def _unexpected(failure: Failure) -> None:
    raise AssertionError(failure)


def _never(grammar: Grammar) -> tuple[Made, int]:
    raise AssertionError
