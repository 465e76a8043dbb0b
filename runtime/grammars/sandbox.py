"""Trials of grammars in processes of their own (`trial.py`), as blocking calls for worker threads.

At most one process per thread that calls at the same time; they start with the first grammar, stay, and end with
`close` or with this process. One that does not answer is killed, and the next call starts another.
"""

import contextlib
import select
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Final

import msgspec

from runtime.errors import GrammarInvalid
from runtime.grammars.trial import WALL_S, Model, Verdict, read, write
from runtime.protocol import Grammar

# On top of the trial's own limit: for starting Python, and for reading a large tokenizer.
_SLACK_S: Final = 30.0


class Sandbox:
    """For one model; see `GrammarCompiler` for the arguments."""

    def __init__(self, tokenizer_file: Path, vocab_size: int, eos_token_ids: tuple[int, ...]) -> None:
        self._model = Model(str(tokenizer_file), vocab_size, eos_token_ids)
        self._lock = threading.Lock()
        self._idle: list[subprocess.Popen[bytes]] = []
        self._busy: set[subprocess.Popen[bytes]] = set()
        self._closed = False

    def try_out(self, grammar: Grammar) -> int:
        """The bytes that it takes to compile. Raises GrammarInvalid."""
        try:
            process = self._take()
        except OSError as error:
            raise GrammarInvalid("this runtime cannot try grammars out just now", lasting=False) from error
        verdict = None
        try:
            verdict = _ask(process, grammar)
        except (OSError, ValueError, msgspec.DecodeError):
            verdict = None
        finally:
            self._give_back(process, sound=verdict is not None)
        if verdict is None:
            raise GrammarInvalid("this runtime could not try it out; send the request again", lasting=False)
        if verdict.problem is not None:
            raise GrammarInvalid(verdict.problem, lasting=verdict.lasting)
        return verdict.num_bytes

    def close(self) -> None:
        """Ends every process; calls under way fail at once."""
        with self._lock:
            self._closed = True
            processes = [*self._idle, *self._busy]
            self._idle.clear()
        for process in processes:
            process.kill()
        for process in processes:
            _reap(process)

    def _take(self) -> subprocess.Popen[bytes]:
        with self._lock:
            if self._closed:
                raise OSError("closed")
            process = self._idle.pop() if self._idle else self._start()
            self._busy.add(process)
            return process

    def _give_back(self, process: subprocess.Popen[bytes], *, sound: bool) -> None:
        with self._lock:
            self._busy.discard(process)
            if sound and not self._closed:
                self._idle.append(process)
                return
        process.kill()
        _reap(process)

    def _start(self) -> subprocess.Popen[bytes]:
        process = subprocess.Popen(
            [sys.executable, "-m", "runtime.grammars.trial"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        assert process.stdin is not None
        with contextlib.suppress(OSError):  # it died at once: the question finds out
            write(process.stdin, self._model)
        return process


def _ask(process: subprocess.Popen[bytes], grammar: Grammar) -> Verdict | None:
    """None when there is no answer in time."""
    assert process.stdin is not None
    assert process.stdout is not None
    deadline = time.monotonic() + WALL_S + _SLACK_S
    write(process.stdin, grammar)
    answers = select.poll()  # takes file numbers of any size
    answers.register(process.stdout, select.POLLIN)
    if not answers.poll(max(0.0, deadline - time.monotonic()) * 1000):
        return None
    return read(process.stdout, Verdict)


def _reap(process: subprocess.Popen[bytes]) -> None:
    for pipe in (process.stdin, process.stdout):
        if pipe is not None:
            with contextlib.suppress(OSError):
                pipe.close()
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(5)
