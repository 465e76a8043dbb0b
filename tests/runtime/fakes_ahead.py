"""A fake device with a queue: what it is given runs later, in order, at a moment of its own choice.

Steps take their unknown tokens from the step before, as a device does, and find in cache and slots what has been
written by then. So a block or a slot that is reused too early, a token shown twice or a row that goes on from the wrong
one changes an answer or breaks a rule.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass, field

from runtime.batch import BASE_SLOT, PENDING, Batch, Row
from storage.packed import Packed
from tests.runtime.fakes import Cell, FakeRunner, next_token
from tests.runtime.rows import changed


@dataclass
class FakeFlight:
    """tokens: by row that samples, None where numbers overflowed; there once it has run."""

    rows: tuple[Row, ...]
    adapters: list[str]
    accounts: list[str]
    broken: set[str]
    before: "FakeFlight | None"
    fails: BaseException | None
    tokens: list[int | None] | None = None

    def token_of(self, sequence_id: int) -> int | None:
        assert self.tokens is not None
        sampled = [row.sequence_id for row in self.rows if row.samples]
        return self.tokens[sampled.index(sequence_id)]


@dataclass
class _FakeCopy:
    slot: int
    name: str
    behind: int
    done: bool = False


@dataclass
class AheadRunner(FakeRunner):
    """Fulfils `RunsAhead` and `CopiesBeside`. fail_finish: raised by the next step's `finish`."""

    chance: random.Random = field(default_factory=lambda: random.Random(5))
    fail_finish: BaseException | None = None
    flights: list[FakeFlight] = field(default_factory=list)
    num_finished: int = 0
    num_run: int = 0
    num_ahead: int = 0
    num_pending: int = 0
    content: dict[int, str] = field(default_factory=dict)
    copies: dict[int, _FakeCopy] = field(default_factory=dict)

    def execute(self, batch: Batch) -> list[int]:
        raise AssertionError("the engine should run ahead")

    def launch(self, batch: Batch) -> FakeFlight:
        self.batches.append(batch)
        if self.fail_next is not None:
            error, self.fail_next = self.fail_next, None
            raise error
        try:
            return self._launch(batch)
        except AssertionError as error:
            self.violations.append(repr(error))
            raise

    def _launch(self, batch: Batch) -> FakeFlight:
        assert len(self.flights) - self.num_finished <= 1, "two steps are under way already"
        self.num_ahead += len(self.flights) > self.num_finished
        rows = tuple(
            changed(row, token_ids=tuple(row.token_ids), block_table=tuple(row.block_table), history=tuple(row.history))
            for row in batch.rows
        )
        assert rows
        assert [row.slot for row in rows] == sorted(row.slot for row in rows)
        before = self.flights[-1] if self.flights else None
        for row in rows:
            assert PENDING not in row.token_ids[:-1]
            assert PENDING not in row.history[:-1]
            if row.token_ids[-1] == PENDING:
                self.num_pending += 1
                assert len(self.flights) > self.num_finished, "the token has been read already"
                assert before is not None
                assert any(one.sequence_id == row.sequence_id and one.samples for one in before.rows)
                assert row.constraint is None
                assert not row.sampling.has_penalties
            taken = [other for other in rows if other is not row and set(other.block_table) & set(self.written(row))]
            assert not taken, "a block that others read is written"
        flight = FakeFlight(
            rows,
            [self._name(row) for row in rows],
            [self.account_of(row.sequence_id) for row in rows],
            set(self.broken_adapters),
            before,
            self.fail_finish,
        )
        self.fail_finish = None
        self.flights.append(flight)
        if before is not None:
            before.before = None
        while self.num_run < len(self.flights) and self.chance.random() < 0.3:
            self._run_next()
        return flight

    def finish(self, flight: FakeFlight) -> list[int | None]:
        try:
            assert self.flights[self.num_finished] is flight, "steps are finished in another order"
            self.num_finished += 1
            while flight.tokens is None:
                self._run_next()
        except AssertionError as error:
            self.violations.append(repr(error))
            raise
        if flight.fails is not None:
            raise flight.fails
        assert flight.tokens is not None
        return flight.tokens

    def _name(self, row: Row) -> str:
        if row.slot == BASE_SLOT:
            return ""
        assert row.slot in self.slots, f"slot {row.slot} is used after its adapter was evicted"
        name, _, _, layers = self.slots[row.slot]
        assert layers == self.num_layers, f"slot {row.slot} is used before it is complete"
        return name

    def _run_next(self) -> None:
        flight = self.flights[self.num_run]
        before = self.flights[self.num_run - 1] if self.num_run else None
        tokens: list[int | None] = []
        for row, adapter, account in zip(flight.rows, flight.adapters, flight.accounts, strict=True):
            if adapter:
                assert self.content[row.slot] == adapter, "the rows hold another adapter by now"
            history = row.history
            if history[-1] == PENDING:
                assert before is not None
                history = (*history[:-1], before.token_of(row.sequence_id) or 0)
            token = self._compute(row, history, adapter, account)
            if row.samples:
                tokens.append(None if adapter in flight.broken else token)
        flight.tokens = tokens
        self.num_run += 1

    def _compute(self, row: Row, history: Sequence[int], adapter: str, account: str) -> int:
        places = [(block, cell) for block in row.block_table for cell in range(self.block_tokens)]
        end = row.start + len(row.token_ids)
        for position in range(row.start, end):
            before = hash(self.cache[places[position - 1]]) if position else 0
            self.cache[places[position]] = Cell(history[position], adapter, account, before)
        read = [self.cache[place] for place in places[:end]]
        assert [cell.token for cell in read] == list(history)[:end], "a block of other tokens"
        assert {(cell.adapter, cell.account) for cell in read} == {(adapter, account)}, "a block of another's"
        return next_token([cell.token for cell in read], adapter, row.seed)

    def write_adapter(self, slot: int, row_offset: int, packed: Packed, first_layer: int, num_layers: int) -> None:
        raise AssertionError("the engine should copy beside")

    def begin_adapter(self, slot: int, row_offset: int, packed: Packed) -> None:
        super().write_adapter(slot, row_offset, packed, 0, 0)
        self.copies[slot] = _FakeCopy(slot, bytes(packed.payload).decode(), len(self.flights))

    def poll_adapter(self, slot: int) -> bool:
        copy = self.copies[slot]
        if self.fail_next is not None:
            error, self.fail_next = self.fail_next, None
            raise error
        if self.chance.random() < 0.6:
            return False
        while self.num_run < copy.behind:  # it comes after the steps that may read what was there
            self._run_next()
        name, offset, rank, _ = self.slots[slot]
        self.slots[slot] = name, offset, rank, self.num_layers
        self.content[slot] = name
        del self.copies[slot]
        return True

    def release_slot(self, slot: int) -> None:
        super().release_slot(slot)
        self.copies.pop(slot, None)
