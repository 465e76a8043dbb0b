"""The loop around the engine: it sleeps when there is nothing to do, wakes for commands, and tells how it ended."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from runtime.engine import StepResult
from runtime.engine_thread import COPY_SLEEP_S, EngineThread
from runtime.errors import EngineStopped


class CountingEngine:
    """Makes progress as often as it is told to."""

    def __init__(self) -> None:
        self.steps = 0
        self.progress = 0
        self.next_deadline: float | None = None
        self.only_copies = False
        self.error: BaseException | None = None
        self.stepped_twice = threading.Event()

    def step(self) -> StepResult:
        self.steps += 1
        if self.steps >= 2:
            self.stepped_twice.set()
        if self.error is not None:
            raise self.error
        self.progress -= 1
        return StepResult((), (), self.progress >= 0, self.only_copies)


class Rig:
    def __init__(self, **options: Any) -> None:
        self.engine = CountingEngine()
        self.now = 0.0
        self.ended = threading.Event()
        self.error: BaseException | None = None
        self.thread = EngineThread(
            self.engine,  # type: ignore[arg-type]
            lambda: self.now,
            on_step=lambda result: None,
            on_end=self._end,
            **options,
        )

    def _end(self, error: BaseException | None) -> None:
        self.error = error
        self.ended.set()

    def settle(self) -> int:
        """Steps so far, after every command posted until now was taken and its step done."""
        for _ in range(2):
            done = threading.Event()
            self.thread.post(lambda engine, done=done: done.set())  # type: ignore[misc]
            assert done.wait(10)
        return self.engine.steps


@contextmanager
def running(rig: Rig) -> Iterator[Rig]:
    rig.thread.start()
    try:
        yield rig
    finally:
        rig.thread.stop()
        assert rig.thread.join(10)


def test_an_idle_engine_does_not_step() -> None:
    with running(Rig()) as rig:
        before = rig.settle()
        assert not rig.ended.wait(0.1)
        # Each settle posts two commands, and each command costs at most one step.
        assert rig.settle() - before <= 2


def test_it_steps_while_there_is_progress() -> None:
    with running(Rig()) as rig:
        before = rig.settle()
        rig.thread.post(lambda engine: setattr(engine, "progress", 50))
        rig.settle()
        while rig.engine.progress >= 0:
            rig.settle()
        assert rig.engine.steps - before >= 50


def test_it_wakes_for_a_deadline() -> None:
    rig = Rig()
    rig.engine.next_deadline = 0.05
    with running(rig):
        assert rig.engine.stepped_twice.wait(10)


def test_an_endless_deadline_is_no_trouble() -> None:
    rig = Rig()
    rig.engine.next_deadline = float("inf")
    with running(rig):
        rig.settle()
        rig.settle()
        assert not rig.ended.is_set()


def test_an_error_ends_it_and_is_told() -> None:
    rig = Rig()
    rig.engine.error = RuntimeError("broken")
    rig.thread.start()
    assert rig.ended.wait(10)
    assert rig.error is rig.engine.error
    rig.thread.post(lambda engine: None)
    with pytest.raises(EngineStopped):
        rig.thread.offer(lambda engine: None)


def test_a_stopped_engine_takes_no_new_work() -> None:
    rig = Rig()
    with running(rig):
        rig.thread.stop()
        with pytest.raises(EngineStopped):
            rig.thread.offer(lambda engine: None)
    assert rig.ended.is_set()
    assert rig.error is None


def test_new_work_is_bounded_ends_are_not() -> None:
    rig = Rig(max_commands=2)
    done: list[int] = []
    assert rig.thread.offer(lambda engine: done.append(1))
    assert rig.thread.offer(lambda engine: done.append(2))
    assert not rig.thread.offer(lambda engine: done.append(3))
    rig.thread.post(lambda engine: done.append(4))
    with running(rig):
        rig.settle()
        assert done == [1, 2, 4]


def test_copies_alone_do_not_keep_the_thread_busy(monkeypatch: pytest.MonkeyPatch) -> None:
    """It looks again a moment later."""
    rig, waits, looked = Rig(), list[float | None](), threading.Event()
    rig.engine.only_copies, rig.engine.progress = True, 1_000_000
    wait = rig.thread._wake.wait

    def noted(timeout: float | None = None) -> bool:
        waits.append(timeout)
        if len(waits) == 4:
            looked.set()
        return wait(timeout)

    monkeypatch.setattr(rig.thread._wake, "wait", noted)
    with running(rig):
        assert looked.wait(10)
        rig.settle()
    assert set(waits) == {COPY_SLEEP_S}
    assert rig.engine.steps <= len(waits) + 5
