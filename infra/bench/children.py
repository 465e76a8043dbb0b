"""The parent's half: children that load once and answer one question at a time, so that rounds can alternate.

Only one child computes at any time; the others sleep on their standard input. What a child says on standard error
goes to a file, whose end is the reason in the row when it dies.
"""

import contextlib
import json
import os
import select
import subprocess
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

import msgspec

from infra.bench.busy import Clocks

ROOT: Final = Path(__file__).resolve().parents[2]
THREADS: Final = 2
LIMIT_S: Final = 300.0


class ChildFailed(Exception):
    """A child cannot measure; the text is the reason for the table."""


class Measured(msgspec.Struct, frozen=True):
    """One batch. Seconds; `tokens` and `cpu_s` belong to `decode_s`, `steps_s` are the decode steps one by one.

    others: the share of the machine's CPUs that went to processes other than the child meanwhile.
    """

    first_s: float
    decode_s: float
    cpu_s: float
    tokens: int
    steps_s: list[float]
    answers: list[list[int]]
    others: float = 0.0

    @property
    def rate(self) -> float:
        """Decode tokens per second."""
        return self.tokens / self.decode_s

    @property
    def cpu_ms(self) -> float:
        """CPU milliseconds per decoded token."""
        return 1e3 * self.cpu_s / self.tokens


class Load(msgspec.Struct, frozen=True):
    """A closed loop of requests, seen by the callers. Seconds; `gaps_s` lie between tokens, `cpu_s` is the server's."""

    seconds: float
    cpu_s: float
    tokens: int
    first_s: list[float]
    gaps_s: list[float]
    others: float = 0.0

    @property
    def rate(self) -> float:
        """Tokens per second of the whole, prefill included."""
        return self.tokens / self.seconds

    @property
    def cpu_ms(self) -> float:
        """CPU milliseconds per token."""
        return 1e3 * self.cpu_s / self.tokens


class Child:
    """Use as a context manager: the process ends with the block.

    limit_s: a child that takes longer over one question (or its start) is killed and has failed.
    """

    def __init__(self, name: str, module: str, arguments: Sequence[str], logs: Path, python: str) -> None:
        self.name, self.limit_s = name, LIMIT_S
        self._log = logs / f"{name}.log"
        logs.mkdir(parents=True, exist_ok=True)
        threads = str(THREADS)
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": threads, "TOKENIZERS_PARALLELISM": "0"}
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                [python, "-m", module, *arguments],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                cwd=ROOT,
                env=environment,
            )
        try:
            self._read()
        except ChildFailed:
            self.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Ends the process."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        with contextlib.suppress(BrokenPipeError):  # a question that a dead child never read
            self._process.stdin.close()
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process.stdout.close()

    def ask(self, op: str, **arguments: Any) -> Any:
        """The answer to one question. Raises ChildFailed."""
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps({"op": op, **arguments}).encode() + b"\n")
            self._process.stdin.flush()
        except OSError as error:
            raise ChildFailed(self._reason()) from error
        answer = self._read()
        if isinstance(answer, dict) and "error" in answer:
            raise ChildFailed(f"{self.name}: {answer['error']}")
        return answer

    def batch(self, prompts: list[list[int]], adapters: list[str | None], tokens: int) -> Measured:
        """One batch of greedy answers of `tokens` tokens each. Raises ChildFailed."""
        return msgspec.convert(self._watched("batch", prompts, adapters, tokens), Measured)

    def load(self, prompts: list[list[int]], adapters: list[str | None], tokens: int, concurrency: int) -> Load:
        """The same as requests of `concurrency` callers. Raises ChildFailed."""
        return msgspec.convert(self._watched("load", prompts, adapters, tokens, concurrency=concurrency), Load)

    def _watched(
        self, op: str, prompts: list[list[int]], adapters: list[str | None], tokens: int, **more: int
    ) -> dict[str, Any]:
        before = Clocks.read(self._process.pid)
        answer = self.ask(op, prompts=prompts, adapters=adapters, tokens=tokens, **more)
        return {**answer, "others": Clocks.read(self._process.pid).others(before)}

    def _read(self) -> Any:
        assert self._process.stdout is not None
        if not select.select([self._process.stdout], [], [], self.limit_s)[0]:
            self._process.kill()
            raise ChildFailed(f"{self.name}: no answer within {self.limit_s:g} s")
        line = self._process.stdout.readline()
        if not line:
            raise ChildFailed(self._reason())
        return json.loads(line)

    def _reason(self) -> str:
        said = self._log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
        return f"{self.name} ended: {said[-1] if said else 'without a word'}"
