"""The cache of grammars: one compilation for all who ask, bounds on everything, turns for accounts, and nothing leaks
whenever anybody gives up."""

import asyncio
from collections import Counter
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from runtime.errors import GrammarInvalid, GrammarsBusy
from runtime.grammars.cache import PASSING_S, GrammarCache
from runtime.grammars.constraint import Constraint
from runtime.protocol import Grammar
from tests.runtime.fakes import FakeClock
from tests.runtime.grammars.hands import Hands, Made, lark, turns


class Desk:
    """A cache in the test's hands, and those who ask it."""

    def __init__(self, **limits: Any) -> None:
        self.hands, self.clock = Hands(), FakeClock()
        self.cache = GrammarCache(_never, self.clock, pool=self.hands, **limits)

    async def ask(self, name: str, account: str = "a") -> "asyncio.Task[Constraint]":
        task = asyncio.create_task(self.cache.get(lark(name), account))
        await turns()
        return task


def _never(grammar: Grammar) -> tuple[Made, int]:
    raise AssertionError


async def test_all_who_ask_share_one_compilation() -> None:
    desk = Desk()
    asked = [await desk.ask("x", account) for account in ("a", "b", "a")]
    assert desk.hands.names == ["x"]
    await desk.hands.finish("x")
    assert [task.result() for task in asked] == [Made(lark("x"))] * 3
    later = await desk.ask("x")
    assert later.done()
    assert desk.hands.begun == []
    assert desk.cache.num_compiled == 1


async def test_a_schema_and_a_lark_text_that_read_alike_are_two() -> None:
    desk = Desk()
    tasks = [asyncio.create_task(desk.cache.get(Grammar(kind, "x"), "a")) for kind in ("lark", "json_schema")]
    await turns()
    assert len(desk.hands.begun) == 2
    for task in tasks:
        task.cancel()


async def test_what_cannot_be_is_remembered_and_what_failed_by_chance_is_not_for_long() -> None:
    desk = Desk()
    first = await desk.ask("bad")
    await desk.hands.finish("bad", GrammarInvalid("it is wrong"))
    for task in (first, await desk.ask("bad")):
        with pytest.raises(GrammarInvalid, match="it is wrong"):
            await task
    unlucky = await desk.ask("unlucky")
    await desk.hands.finish("unlucky", GrammarInvalid("killed", lasting=False))
    for task in (unlucky, await desk.ask("unlucky")):
        with pytest.raises(GrammarsBusy, match="killed"):
            await task
    assert desk.hands.begun == []
    desk.clock.now += PASSING_S
    again = await desk.ask("unlucky")
    await desk.hands.finish("unlucky")
    assert await again == Made(lark("unlucky"))
    with pytest.raises(GrammarInvalid):
        await desk.ask("bad") and await desk.cache.get(lark("bad"), "a")


async def test_a_bug_of_the_compiler_is_not_the_callers() -> None:
    desk = Desk()
    task = await desk.ask("x")
    await desk.hands.finish("x", RuntimeError("secret"))
    with pytest.raises(GrammarsBusy, match="failed to compile"):
        await task


async def test_a_worn_grammar_is_compiled_anew() -> None:
    desk = Desk()
    await desk.ask("x")
    made = Made(lark("x"))
    await desk.hands.finish("x", made)
    made.worn = True
    fresh = await desk.ask("x")
    await desk.hands.finish("x", Made(lark("x"), done=True))
    assert (await fresh).done


async def test_entries_leave_by_bytes_least_used_first() -> None:
    desk = Desk(max_bytes=1_000_000)
    for name in ("a", "b", "c"):
        task = await desk.ask(name)
        await desk.hands.finish(name, size=400_000)
        await task
    assert desk.cache._entries.num_bytes <= 1_000_000
    assert (await desk.ask("b")).done()
    gone = await desk.ask("a")
    assert desk.hands.names == ["a"]
    await desk.hands.finish("a", size=400_000)
    assert gone.done()
    assert (await desk.ask("b")).done()
    assert not (await desk.ask("c")).done()


async def test_a_grammar_larger_than_the_cache_is_answered_and_not_kept() -> None:
    desk = Desk(max_bytes=1000)
    task = await desk.ask("x")
    await desk.hands.finish("x", size=2000)
    assert await task == Made(lark("x"))
    assert (len(desk.cache._entries), desk.cache._entries.num_bytes) == (0, 0)


async def test_thousands_of_tiny_grammars_are_bounded_too() -> None:
    desk = Desk(max_bytes=1024 * 1024)
    for index in range(100):
        await desk.ask(str(index))
        await desk.hands.finish(str(index), GrammarInvalid("no"))
    assert len(desk.cache._entries) <= 16


async def test_accounts_take_turns() -> None:
    desk = Desk(threads=1)
    for index in range(5):
        await desk.ask(f"greedy-{index}", "greedy")
    await desk.ask("modest-0", "modest")
    order = []
    while desk.hands.begun:
        order.append(desk.hands.names[0])
        await desk.hands.finish(desk.hands.names[0])
    assert order[:3] == ["greedy-0", "greedy-1", "modest-0"]
    assert order[3:] == ["greedy-2", "greedy-3", "greedy-4"]


async def test_what_waits_is_bounded_per_account_and_in_all() -> None:
    desk = Desk(threads=1, max_account_flights=2, max_flights=5, max_waiting=7)
    for account in "ab":
        for index in range(4):
            task = await desk.ask(f"{account}{index}", account)
            # The first of all is being compiled and waits no more.
            assert task.done() == (index >= (3 if account == "a" else 2))
    with pytest.raises(GrammarsBusy):
        await (await desk.ask("c", "c"))
    assert not (await desk.ask("a0", "c")).done(), "somebody else's flight is free to join"
    assert not (await desk.ask("a0", "c")).done()
    with pytest.raises(GrammarsBusy, match="too many requests"):
        await (await desk.ask("a0", "d"))


@given(
    moves=st.lists(
        st.one_of(
            st.tuples(st.just("ask"), st.integers(0, 4), st.sampled_from("abc")),
            st.tuples(st.just("cancel"), st.integers(0, 20), st.just("")),
            st.tuples(st.just("finish"), st.integers(0, 3), st.sampled_from(["ok", "bad", "unlucky", "worn"])),
        ),
        max_size=40,
    )
)
@settings(max_examples=200, deadline=None)
def test_nothing_leaks_whenever_anybody_gives_up(moves: list[tuple[str, int, str]]) -> None:
    asyncio.run(_play(moves))


async def _play(moves: list[tuple[str, int, str]]) -> None:
    desk = Desk(threads=2, max_account_flights=2, max_flights=6, max_waiting=6, max_bytes=300_000)
    asked: list[asyncio.Task[Constraint]] = []
    cancelled: set[asyncio.Task[Constraint]] = set()
    for move, number, what in moves:
        if move == "ask":
            asked.append(await desk.ask(f"g{number}", what))
        elif move == "cancel" and asked:
            task = asked[number % len(asked)]
            if not task.done():
                cancelled.add(task)
            task.cancel()
            await turns()
        elif move == "finish" and desk.hands.begun:
            await _finish(desk, number, what)
        _check(desk, asked)
    while desk.hands.begun:
        await _finish(desk, 0, "ok")
        _check(desk, asked)
    assert all(task.done() for task in asked)
    assert {task for task in asked if task.cancelled()} == cancelled
    for task in asked:
        if not task.cancelled() and (error := task.exception()) is not None:
            assert isinstance(error, GrammarInvalid | GrammarsBusy)
    cache = desk.cache
    assert (cache._flights, dict(cache._queues), cache._num_compiling, cache._num_waiting) == ({}, {}, 0, 0)


async def _finish(desk: Desk, number: int, what: str) -> None:
    name = desk.hands.names[number % len(desk.hands.names)]
    result: Made | Exception = Made(lark(name), worn=what == "worn")
    if what in ("bad", "unlucky"):
        result = GrammarInvalid("no", lasting=what == "bad")
    await desk.hands.finish(name, result, 100_000)


def _check(desk: Desk, asked: list["asyncio.Task[Constraint]"]) -> None:
    cache = desk.cache
    assert cache._num_compiling == len(desk.hands.begun) <= 2
    assert max(Counter(desk.hands.names).values(), default=0) <= 1
    assert cache._num_waiting == sum(not task.done() for task in asked) <= 6
    assert cache._entries.num_bytes <= 300_000
    queued = [flight for queue in cache._queues.values() for flight in queue]
    assert all(len(queue) in (1, 2) for queue in cache._queues.values())
    assert len(queued) + len(desk.hands.begun) == len(cache._flights) <= 6
    assert all(flight.num_waiting for flight in queued), "nobody waits for it any more"
