"""The floor: how fast this machine reads memory, with the same two threads and nothing else to do.

A decoded token of a single sequence reads every weight once. `batch` reads a buffer of that many bytes `tokens` times
(a sum over fp32, the plainest read that torch has): its "tokens per second" are the most that so many bytes allow.
"""

import argparse
from typing import Any

import torch

from infra.bench.child import Times, serve
from infra.bench.children import THREADS


class MemoryChild:
    """One buffer, written once so that its pages exist."""

    def __init__(self, num_bytes: int) -> None:
        torch.set_num_threads(THREADS)
        self._buffer = torch.ones(num_bytes // 4)

    def batch(self, prompts: list[list[int]], adapters: list[str | None], tokens: int) -> dict[str, Any]:
        """See `children.Child.batch`; only `tokens` matters."""
        times = Times()
        for _ in range(tokens):
            self._buffer.sum()
            times.step(1)
        return times.answer([[]])


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("num_bytes", type=int)
    serve({"batch": MemoryChild(parser.parse_args().num_bytes).batch})
