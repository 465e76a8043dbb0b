"""Everything that can happen to an engine, as verbs; and what must hold at any time and at the end.

The rig checks the books after every step, the fake runner checks what it is given.
"""

from collections.abc import Callable

from runtime.protocol import Failure, Submit
from tests.runtime.fakes import FakeRunner, answer, ref, submit, tokens_of
from tests.runtime.rig import Rig

ADAPTERS = {f"x{i}": rank for i, rank in enumerate([8, 8, 16, 24, 4, 40])}
KINDS = {"timeout", "overloaded", "too_long", "adapter_missing", "adapter_too_large", "adapter_corrupt", "internal"}


class World:
    """Small enough that blocks, rows, leases and the queue all run out."""

    def __init__(self, *, prefix_cache: bool = True, make: Callable[..., FakeRunner] = FakeRunner) -> None:
        self.rig = Rig(
            make=make,
            num_blocks=16,
            rows=32,
            max_running=5,
            max_waiting=8,
            step_tokens=16,
            copy_bytes=150,
            max_leases=3,
            prefix_cache=prefix_cache,
        )
        self.requests: dict[tuple[int, int], Submit] = {}
        self.gone: set[tuple[int, int]] = set()
        self.yields = 0

    def arrive(
        self,
        owner: int,
        account: str,
        adapter: str | None,
        length: int,
        max_tokens: int,
        timeout_s: float,
        common: int,
        priority: int,
        weight: float,
    ) -> None:
        """The first `common` tokens of a prompt are those of everybody's prompts."""
        number = len(self.requests) + 1
        request = submit(
            number,
            (tokens_of(0, 40)[:common] + tokens_of(number, 40))[:length],
            account=account,
            adapter=None if adapter is None else ref(adapter, ADAPTERS[adapter]),
            max_tokens=max_tokens,
            seed=number,
            timeout_s=timeout_s,
            priority=priority,
            weight=weight,
        )
        self.requests[owner, number] = request
        self.rig.submit(request, owner)

    def abort(self, which: int) -> None:
        if self.requests:
            owner, sequence_id = key = list(self.requests)[which % len(self.requests)]
            self.rig.engine.abort(owner, sequence_id)
            self._leave(key)

    def connection_closes(self, owner: int) -> None:
        self.rig.engine.abort_owner(owner)
        for key in self.requests:
            if key[0] == owner:
                self._leave(key)

    def _leave(self, key: tuple[int, int]) -> None:
        said = self.rig.outputs[key]
        if not said or said[-1].finish_reason is None:
            self.gone.add(key)

    def load_arrives(self, which: int) -> None:
        started = list(self.rig.loads.started)
        self.rig.load(started[which % len(started)])

    def load_fails(self, which: int) -> None:
        started = list(self.rig.loads.started)
        self.rig.fail_load(started[which % len(started)], Failure("adapter_missing", "gone"))

    def load_stops(self, which: int) -> None:
        stopping = [name for name in self.rig.loads.stopping if name in self.rig.loads.started]
        self.rig.stop_load(stopping[which % len(stopping)])

    def forget(self, adapter: str) -> None:
        self.rig.engine.forget_adapter(adapter)

    def step(self, count: int, seconds: float) -> None:
        for _ in range(count):
            waiting = {item.number: item.num_yields for item in self.rig.engine._answers.live.values()}
            self.rig.step(seconds)
            live = self.rig.engine._answers.live.values()
            self.yields += sum(item.num_yields - waiting.get(item.number, 0) for item in live)

    def a_step_fails(self) -> None:
        self.rig.runner.fail_next = RuntimeError("planted")
        self.rig.step()
        self.rig.runner.fail_next = None

    def numbers_overflow(self, adapter: str) -> None:
        self.rig.runner.broken_adapters = {adapter}
        self.rig.step()
        self.rig.runner.broken_adapters = set()

    def check(self) -> None:
        stats = self.rig.engine.stats()
        assert stats.running <= 5
        assert stats.waiting <= 8 + 5
        assert len(self.rig.loads.started) + len(self.rig.loads.leased) <= 3
        for batch in self.rig.runner.batches:
            assert sum(len(row.token_ids) for row in batch.rows) <= 16
        self.rig.runner.batches.clear()
        assert not any(self.rig.outputs[key] and self.rig.outputs[key][-1].finish_reason for key in self.gone)

    def finish(self) -> None:
        """Everything left ends, each sequence exactly once, with the answer of an undisturbed run."""
        self.rig.run(steps=20_000)
        engine = self.rig.engine
        assert engine.num_live == 0
        assert engine.stats().free_blocks == 16
        assert not self.rig.loads.leased
        assert all(slot.references == 0 for slot in engine._rows.slots)
        for key, request in self.requests.items():
            if key in self.gone:
                continue
            last, whole = self.rig.last(key[1], key[0]), answer(request)
            tokens = self.rig.tokens(key[1], key[0])
            if last.finish_reason == "length":
                assert tokens == whole
                assert last.completion_tokens == len(whole)
            else:
                assert last.failure is not None
                assert last.failure.kind in KINDS
                assert tokens == whole[: len(tokens)]
