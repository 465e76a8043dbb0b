"""An engine on fakes, with its outputs gathered per sequence and its books checked after every step."""

from collections import Counter, defaultdict
from collections.abc import Callable
from typing import Any

from runtime.engine import Engine, EngineLimits
from runtime.protocol import AdapterStatus, Failure, SequenceOutput, Submit
from runtime.sequence import State
from runtime.steps import StepsInTurn
from tests.runtime.fakes import MODEL, WAY, FakeClock, FakeLoads, FakeRunner, packed


class Rig:
    """`outputs[owner, id]` is everything a sequence said."""

    def __init__(
        self, *, num_blocks: int = 64, rows: int = 32, make: Callable[..., FakeRunner] = FakeRunner, **limits: Any
    ) -> None:
        self.clock = FakeClock()
        self.runner = make(num_blocks=num_blocks, num_rows=rows)
        self.loads = FakeLoads()
        block_tokens = self.runner.block_tokens
        self.engine = Engine(
            self.runner, MODEL, EngineLimits(num_blocks, block_tokens, rows, **limits), self.loads, self.clock
        )
        self.runner.account_of = self.account_of
        self.outputs: dict[tuple[int, int], list[SequenceOutput]] = defaultdict(list)
        self.statuses: list[AdapterStatus] = []

    def use(self, runner: FakeRunner) -> None:
        """From the next step on."""
        steps = self.engine._steps
        assert isinstance(steps, StepsInTurn)
        self.runner = steps.runner = runner

    def account_of(self, number: int) -> str:
        """Whose sequence the engine knows by this number."""
        return next(item.account_id for item in self.engine._answers.live.values() if item.number == number)

    def submit(self, request: Submit, owner: int = 1) -> None:
        self.engine.submit(owner, request)

    def step(self, seconds: float = 0.01) -> bool:
        result = self.engine.step()
        self.clock.now += seconds
        for item in result.outputs:
            said = self.outputs[item.owner, item.output.sequence_id]
            assert not said or said[-1].finish_reason is None, "an output after the last one"
            said.append(item.output)
        self.statuses += result.statuses
        self.check()
        return result.progressed

    def load(self, name: str, rank: int | None = None) -> None:
        adapter = self.loads.started.pop(name)
        self.loads.leased.add(name)
        self.engine.adapter_loaded(name, packed(name, rank or adapter.rank), WAY)

    def fail_load(self, name: str, failure: Failure) -> None:
        del self.loads.started[name]
        self.engine.adapter_failed(name, failure)

    def stop_load(self, name: str) -> None:
        """The loader does as it was told."""
        self.loads.stopping.remove(name)
        del self.loads.started[name]
        self.engine.adapter_stopped(name)

    def run(self, steps: int = 1000) -> None:
        """Steps until nothing is left to do, answering every load at once."""
        for _ in range(steps):
            for name in list(self.loads.started):
                self.load(name)
            if not self.step() and not self.loads.started:
                return
        raise AssertionError(f"not done after {steps} steps")

    def tokens(self, sequence_id: int, owner: int = 1) -> list[int]:
        return [token for output in self.outputs[owner, sequence_id] for token in output.token_ids]

    def last(self, sequence_id: int, owner: int = 1) -> SequenceOutput:
        said = self.outputs[owner, sequence_id]
        assert said, f"sequence {sequence_id} said nothing"
        assert said[-1].finish_reason is not None
        return said[-1]

    def check(self) -> None:
        """No block or row lost or owned twice; references are those of the running sequences."""
        engine = self.engine
        blocks, pool, scheduler = engine._blocks, engine._rows, engine._scheduler
        running = scheduler.running
        assert not self.runner.violations, self.runner.violations
        held = Counter(block for sequence in running for block in sequence.block_table)
        assert all(blocks.references(block) == held[block] for block in range(blocks.num_blocks))
        assert blocks.num_free + len(held) == blocks.num_blocks
        assert set(blocks._free) | set(blocks._idle) | set(held) == set(range(blocks.num_blocks))
        assert {key: block for block, key in enumerate(blocks._keys) if key is not None} == blocks._by_key
        assert set(blocks._idle) <= set(blocks._by_key.values()) <= set(blocks._idle) | set(held)
        for sequence in running:
            full = sequence.num_computed // blocks.block_tokens
            assert all(blocks._keys[block] is None for block in sequence.block_table[full:])
        live = list(engine._answers.live.values())
        assert [item.seat for item in running] == sorted({item.seat for item in running})
        assert len({item.seat for item in live}) == len(live)
        assert set(running) | set(scheduler._waiting) == set(live)
        assert all(sequence.state is not State.FINISHED for sequence in live)
        assert all(not sequence.block_table and sequence.slot == -1 for sequence in scheduler._waiting)
        end = 0
        for slot in pool.slots:
            assert slot.offset >= end
            end = slot.end
            users = [sequence for sequence in running if sequence.digest == slot.digest]
            assert slot.references == len(users)
            assert all(sequence.slot == slot.number for sequence in users)
        assert end <= pool.num_rows
        assert {slot.number for slot in pool.slots} >= set(self.runner.slots)
        assert all(sequence.digest in pool for sequence in running if sequence.digest is not None)
