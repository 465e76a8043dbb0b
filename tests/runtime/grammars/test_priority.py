"""What compiles has less of a claim to the processor than what answers, and the rest of the process keeps its own."""

import asyncio
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from runtime.grammars.cache import GrammarCache
from runtime.grammars.priority import NICENESS, give_way
from runtime.grammars.sandbox import Sandbox
from runtime.protocol import Grammar
from tests.gateway.text.folders import byte_level
from tests.runtime.grammars.hands import Made, lark

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="only Linux has priorities of threads")


def niceness(task: int) -> int:
    return os.getpriority(os.PRIO_PROCESS, task)


async def test_the_threads_of_the_cache_give_way_and_no_other_does() -> None:
    seen: list[int] = []

    def compile(grammar: Grammar) -> tuple[Made, int]:
        seen.append(niceness(threading.get_native_id()))
        return Made(grammar), 0

    before = niceness(threading.get_native_id())
    cache = GrammarCache(compile, time.monotonic)
    try:
        await asyncio.gather(*(cache.get(lark(str(number)), "a") for number in range(4)))
    finally:
        cache.close()
    assert len(seen) == 4
    assert min(seen) >= NICENESS
    assert niceness(threading.get_native_id()) == before


def test_the_process_of_trials_gives_way_and_so_do_its_forks(tmp_path: Path) -> None:
    """Its caller here has not."""
    box = Sandbox(byte_level(tmp_path) / "tokenizer.json", 400, (1,))
    try:
        box.try_out(Grammar("json_schema", '{"type": "object"}'))
        (process,) = box._idle
        assert niceness(process.pid) >= NICENESS
    finally:
        box.close()


def test_who_has_less_of_a_claim_already_keeps_that() -> None:
    code = (
        "import os; from runtime.grammars.priority import give_way; "
        "os.nice(15); had = os.nice(0); give_way(); give_way(); assert os.nice(0) == had >= 15"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_system_that_forbids_it_is_left_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: int) -> None:
        raise PermissionError

    monkeypatch.setattr(os, "getpriority", lambda *_: 0)
    monkeypatch.setattr(os, "setpriority", refuse)
    give_way()
