"""Compiles grammars that nobody trusts, where it can do no harm: `python -m runtime.grammars.trial`.

    standard input:   Model, then Grammar, Grammar, ...      (4-byte length, msgpack)
    standard output:  Verdict, Verdict, ...

A schema of forty bytes can ask for an automaton of gigabytes, and the library can be neither interrupted nor held to
a bound. So this process, small and without torch, forks for every grammar: the child compiles under limits of the
kernel on processor time and memory, says some random tokens by the grammar, tells what it took, and is gone. One that
dies is a verdict too. The end of standard input is the end of the process.
"""

import os
import random
import resource
import select
import signal
import sys
import threading
from pathlib import Path
from typing import IO, Final, TypeVar

import msgspec
import numpy as np

from runtime.errors import GrammarInvalid
from runtime.grammars.compiler import GrammarCompiler, Masks
from runtime.grammars.priority import give_way
from runtime.protocol import Grammar

CPU_S: Final = 2
WALL_S: Final = 10.0
MEMORY_BYTES: Final = 192 * 1024**2
_TOKENS: Final = 48
# What a fork touches by living.
_FORK_BYTES: Final = 8 * 1024**2
_GIVEN_UP: Final = "it takes too much time or memory to compile; make the schema smaller"

T = TypeVar("T")


class Model(msgspec.Struct, frozen=True):
    """The arguments of `GrammarCompiler`."""

    tokenizer_file: str
    vocab_size: int
    eos_token_ids: tuple[int, ...]


class Verdict(msgspec.Struct, frozen=True):
    """problem: None when the grammar may be compiled elsewhere; num_bytes: memory that it took at its most.

    lasting: whether the problem is the grammar's own, and not that of a busy moment.
    """

    problem: str | None
    num_bytes: int = 0
    lasting: bool = True


def main() -> None:
    """Serves until standard input ends."""
    frames, answers = sys.stdin.buffer, sys.stdout.buffer
    give_way()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the terminal's Ctrl-C is for the parent
    model = read(frames, Model)
    if model is None:
        return
    compiler = GrammarCompiler(Path(model.tokenizer_file), model.vocab_size, model.eos_token_ids)
    try:
        compiler.warm()
    except GrammarInvalid as error:
        problem = Verdict(str(error))
        while read(frames, Grammar) is not None:
            write(answers, problem)
        return
    while (grammar := read(frames, Grammar)) is not None:
        write(answers, _verdict(compiler, grammar, model.vocab_size))


def read(stream: IO[bytes], kind: type[T]) -> T | None:
    """One frame; None at the end of the stream."""
    head = stream.read(4)
    if len(head) < 4:
        return None
    return msgspec.msgpack.decode(stream.read(int.from_bytes(head, "big")), type=kind)


def write(stream: IO[bytes], value: msgspec.Struct) -> None:
    """One frame."""
    body = msgspec.msgpack.encode(value)
    stream.write(len(body).to_bytes(4, "big") + body)
    stream.flush()


def _verdict(compiler: GrammarCompiler, grammar: Grammar, vocab_size: int) -> Verdict:
    """What a fork of this process says, or what its death says."""
    come, go = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(come)
        try:
            with os.fdopen(go, "wb") as pipe:
                # In a thread, for the stack that it will have in the runtime.
                work = threading.Thread(target=lambda: write(pipe, _try(compiler, grammar, vocab_size)))
                work.start()
                work.join()
        finally:
            os._exit(0)
    os.close(go)
    with os.fdopen(come, "rb") as pipe:
        in_time = bool(select.select([come], [], [], WALL_S)[0])
        verdict = read(pipe, Verdict) if in_time else None
    os.kill(child, signal.SIGKILL)
    _, _, usage = os.wait4(child, 0)
    if verdict is not None:
        return verdict
    # Without its share of the processor it may be a busy machine's fault.
    return Verdict(_GIVEN_UP, lasting=in_time or usage.ru_utime + usage.ru_stime > CPU_S / 2)


def _try(compiler: GrammarCompiler, grammar: Grammar, vocab_size: int) -> Verdict:
    """In the fork."""
    sys.stderr.close()
    os.close(2)  # an abort of the library needs no words
    before = _resident_bytes()
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_CPU, (CPU_S, CPU_S))
    _limit_memory()
    try:
        compiled = compiler.compile(grammar)
    except GrammarInvalid as error:
        return Verdict(str(error))
    constraint, masks, chance = compiled.start(), Masks(threads=0), random.Random(0)  # noqa: S311 - no secret is made of it
    for _ in range(_TOKENS):
        words = np.flatnonzero(masks.allowed_words([constraint], vocab_size)[0])
        if constraint.done or constraint.problem is not None:
            break
        constraint.take(int(words[chance.randrange(len(words))]))
    return Verdict(None, max(0, _resident_bytes() - before - _FORK_BYTES))


def _resident_bytes() -> int:
    """At its most so far."""
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def _limit_memory() -> None:
    """Linux only: elsewhere the address space cannot be bounded, and the time limit has to do."""
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[0])
    except OSError:
        return
    limit = pages * resource.getpagesize() + MEMORY_BYTES
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))


if __name__ == "__main__":
    main()
