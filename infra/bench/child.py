"""The child's half of a measurement: one line of JSON in, one line out, until standard input ends.

Standard library only, because llama.cpp's child runs in an environment without our packages. A question is
`{"op": name, **arguments}`; the answer is what the function of that name returns, or `{"error": sentence}`.
Libraries that print go to standard error: standard output belongs to the answers.
"""

import json
import os
import sys
import time
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass
class Times:
    """When each step of a batch came back, by the wall and by this process's CPU (all threads), with its tokens."""

    began: float = field(default_factory=time.perf_counter)
    wall: list[float] = field(default_factory=list)
    cpu: list[float] = field(default_factory=list)
    tokens: list[int] = field(default_factory=list)
    answered: list[int] = field(default_factory=list)

    def step(self, tokens: int, answered: int | None = None) -> None:
        """A step is done, after which `answered` sequences have a token (default: those that got one in this step)."""
        self.wall.append(time.perf_counter())
        self.cpu.append(time.process_time())
        self.tokens.append(tokens)
        self.answered.append(tokens if answered is None else answered)

    def answer(self, answers: list[list[int]]) -> dict[str, Any]:
        """The record of `children.Measured`.

        Decoding is counted from the first step at which every sequence has answered to the last one: prefill is not
        in it, nor is anything after the last token.
        """
        first = next(step for step, answered in enumerate(self.answered) if answered >= len(answers))
        wall = [after - before for before, after in zip(self.wall[first:], self.wall[first + 1 :], strict=False)]
        return {
            "first_s": self.wall[0] - self.began,
            "decode_s": self.wall[-1] - self.wall[first],
            "cpu_s": self.cpu[-1] - self.cpu[first],
            "tokens": sum(self.tokens[first + 1 :]),
            "steps_s": wall,
            "answers": answers,
        }


def serve(operations: Mapping[str, Callable[..., Any]]) -> None:
    """Answers questions until there are no more."""
    out = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    print(json.dumps("ready"), file=out, flush=True)
    for line in sys.stdin:
        question = json.loads(line)
        try:
            answer = operations[question.pop("op")](**question)
        except Exception as error:
            traceback.print_exc()
            answer = {"error": f"{type(error).__name__}: {error}"}
        print(json.dumps(answer), file=out, flush=True)
