"""The real engine on the real runner, asked without a process or a socket in between."""

import time
from collections.abc import Sequence
from typing import Any

from runtime.engine import Engine, EngineLimits
from runtime.protocol import ModelInfo, SequenceOutput, Submit
from runtime.runner import TorchRunner
from storage.packed import Packed
from tests.runtime.fakes import WAY, FakeLoads


class Asked:
    """`adapters` are what the object store would hold."""

    def __init__(
        self, runner: TorchRunner, adapters: dict[str, Packed], *, block_tokens: int = 16, **limits: Any
    ) -> None:
        self.adapters, self.loads, self.runner = adapters, FakeLoads(), runner
        info = ModelInfo("m", "float32", "cpu", 1, runner.vocab_size, runner.max_sequence_tokens, 128, ())
        self.engine = Engine(
            runner, info, EngineLimits(runner.num_blocks, block_tokens, 128, **limits), self.loads, time.monotonic
        )

    def answers(self, requests: Sequence[Submit]) -> tuple[list[list[int]], list[SequenceOutput]]:
        """All at once: tokens and last output of each, in their order."""
        for request in requests:
            self.engine.submit(1, request)
        said: dict[int, list[int]] = {request.sequence_id: [] for request in requests}
        last: dict[int, SequenceOutput] = {}
        while self.engine.num_live:
            for name in list(self.loads.started):
                del self.loads.started[name]
                self.loads.leased.add(name)
                self.engine.adapter_loaded(name, self.adapters[name], WAY)
            for item in self.engine.step().outputs:
                assert item.output.failure is None
                said[item.output.sequence_id] += item.output.token_ids
                last[item.output.sequence_id] = item.output
        return list(said.values()), [last[number] for number in said]

    def leave(self) -> None:
        """The runner's slots are empty again, for the next engine."""
        for name in self.adapters:
            self.engine.forget_adapter(name)
        self.engine.step()
