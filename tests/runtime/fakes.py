"""A runner, a loader and a clock whose whole state tests can see.

The runner keeps a real paged cache. Like keys and values, a cell depends on everything before it, on the adapter that
computed it, and (a watermark) on the account; each next token is computed from what is read back through the block
table. So a block that two sequences own or wrongly share, or an adapter that left too early, changes an answer.
"""

import hashlib
import random
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NamedTuple

from runtime.adapter import Way
from runtime.batch import BASE_SLOT, Batch, Row
from runtime.errors import LogitsInvalid
from runtime.protocol import AdapterRef, ModelInfo, SamplingParams, Submit, TierVisit
from storage.geometry import Geometry
from storage.packed import Packed, PackedHeader

VOCAB = 97
EOS = 96
GEOMETRY = Geometry("fake", 4, 8, 8, 2, 2, 4)
MODEL = ModelInfo("@cf/test/model", "float32", "cpu", 1, VOCAB, 256, 64, (EOS,))


def ref(name: str, rank: int = 8) -> AdapterRef:
    return AdapterRef(digest=name, object_key=f"adapters/{name}", size_bytes=400, rank=rank, finetune_id=f"id-{name}")


def packed(name: str, rank: int = 8) -> Packed:
    return Packed(PackedHeader(GEOMETRY, "float32", rank, 400, ()), memoryview(name.encode()))


WAY = Way((TierVisit("disk", 0.2, 400), TierVisit("memory", 0.1, 400)), "object")


def submit(
    sequence_id: int,
    prompt: tuple[int, ...] = (1, 2, 3),
    *,
    account: str = "a",
    adapter: AdapterRef | None = None,
    max_tokens: int = 4,
    seed: int | None = 7,
    stop: tuple[int, ...] = (),
    timeout_s: float = 1000.0,
    priority: int = 0,
    weight: float = 1.0,
) -> Submit:
    sampling = SamplingParams(max_tokens=max_tokens, seed=seed, stop_token_ids=stop)
    return Submit(sequence_id, account, prompt, sampling, adapter, None, timeout_s, priority=priority, weight=weight)


def next_token(tokens: list[int], adapter: str, seed: int) -> int:
    """What the fake model says after `tokens`; never EOS."""
    digest = hashlib.blake2b(repr((tokens, adapter, seed)).encode(), digest_size=4).digest()
    return int.from_bytes(digest, "big") % EOS


def answer(request: Submit) -> list[int]:
    """The whole answer of an undisturbed run."""
    tokens = list(request.token_ids)
    adapter = request.adapter.digest if request.adapter else ""
    assert request.sampling.seed is not None
    answer: list[int] = []
    while len(answer) < request.sampling.max_tokens:
        token = next_token(tokens, adapter, request.sampling.seed)
        if token in request.sampling.stop_token_ids:
            break
        answer.append(token)
        tokens.append(token)
    return answer


class FakeClock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


class Cell(NamedTuple):
    """One position of the cache. `before` stands for every cell in front of it."""

    token: int
    adapter: str
    account: str
    before: int


@dataclass
class FakeRunner:
    """Checks every rule of `runtime.batch.Runner` that a caller can break.

    The engine takes an assertion for a failed step; `violations` keeps it. account_of: of a row's sequence.
    """

    num_blocks: int = 64
    block_tokens: int = 4
    num_rows: int = 32
    num_layers: int = GEOMETRY.num_layers
    fail_next: BaseException | None = None
    broken_adapters: set[str] = field(default_factory=set)
    batches: list[Batch] = field(default_factory=list)
    violations: list[str] = field(default_factory=list)
    account_of: Callable[[int], str] = lambda _: ""
    cache: dict[tuple[int, int], Cell] = field(default_factory=dict)
    slots: dict[int, tuple[str, int, int, int]] = field(default_factory=dict)

    def execute(self, batch: Batch) -> list[int]:
        self.batches.append(batch)
        if self.fail_next is not None:
            error, self.fail_next = self.fail_next, None
            raise error
        try:
            return self._execute(batch)
        except AssertionError as error:
            self.violations.append(repr(error))
            raise

    def _execute(self, batch: Batch) -> list[int]:
        assert batch.rows
        assert [row.slot for row in batch.rows] == sorted(row.slot for row in batch.rows)
        tables = Counter(block for row in batch.rows for block in row.block_table)
        for row in batch.rows:
            assert len(set(row.block_table)) == len(row.block_table)
            assert all(tables[block] == 1 for block in self.written(row)), "a block that others read is written"
        broken = tuple(row.sequence_id for row in batch.rows if self.adapter_of(row) in self.broken_adapters)
        if broken:
            raise LogitsInvalid(broken)
        return [token for row in batch.rows if (token := self._row(row)) is not None]

    def adapter_of(self, row: Row) -> str:
        if row.slot == BASE_SLOT:
            return ""
        assert row.slot in self.slots, f"slot {row.slot} is used after its adapter was evicted"
        name, _, _, layers = self.slots[row.slot]
        assert layers == self.num_layers, f"slot {row.slot} is used before it is complete"
        return name

    def written(self, row: Row) -> list[int]:
        """The blocks that hold the row's new tokens."""
        last = row.start + len(row.token_ids) - 1
        return list(row.block_table[row.start // self.block_tokens : last // self.block_tokens + 1])

    def _row(self, row: Row) -> int | None:
        adapter, account, size = self.adapter_of(row), self.account_of(row.sequence_id), self.block_tokens
        places = [(block, cell) for block in row.block_table for cell in range(size)]
        for position, token in enumerate(row.token_ids, row.start):
            before = hash(self.cache[places[position - 1]]) if position else 0
            self.cache[places[position]] = Cell(token, adapter, account, before)
        end = row.start + len(row.token_ids)
        read = [self.cache[place] for place in places[:end]]
        tokens = [cell.token for cell in read]
        assert tokens == list(row.history)[:end], "a block of other tokens"
        assert {cell.adapter for cell in read} == {adapter}, "a block of another adapter"
        assert {cell.account for cell in read} == {account}, "a block of another account"
        before = 0
        for cell in read:
            assert cell.before == before, "a block with another past"
            before = hash(cell)
        assert row.samples == (end == len(row.history))
        return next_token(tokens, adapter, row.seed) if row.samples else None

    def write_adapter(self, slot: int, row_offset: int, packed: Packed, first_layer: int, num_layers: int) -> None:
        name, rank = bytes(packed.payload).decode(), packed.header.rank
        if first_layer == 0:
            assert slot not in self.slots
            assert row_offset + rank <= self.num_rows
            for _, offset, rows, _ in self.slots.values():
                assert offset + rows <= row_offset or row_offset + rank <= offset, "rows owned twice"
            self.slots[slot] = name, row_offset, rank, 0
        assert self.slots[slot] == (name, row_offset, rank, first_layer)
        if self.fail_next is not None:
            error, self.fail_next = self.fail_next, None
            raise error
        self.slots[slot] = name, row_offset, rank, first_layer + num_layers

    def release_slot(self, slot: int) -> None:
        self.slots.pop(slot, None)


@dataclass
class FakeLoads:
    """Remembers what was asked; the test answers when it likes."""

    started: dict[str, AdapterRef] = field(default_factory=dict)
    stopping: list[str] = field(default_factory=list)
    warming: dict[str, AdapterRef] = field(default_factory=dict)
    leased: set[str] = field(default_factory=set)
    forgotten: list[str] = field(default_factory=list)

    def start(self, adapter: AdapterRef) -> None:
        assert adapter.digest not in self.started, "two loads of one adapter"
        assert adapter.digest not in self.leased
        self.started[adapter.digest] = adapter

    def stop(self, digest: str) -> None:
        self.stopping.append(digest)

    def warm(self, adapter: AdapterRef) -> None:
        self.warming[adapter.digest] = adapter

    def release(self, digest: str) -> None:
        self.leased.remove(digest)

    def forget(self, digest: str) -> None:
        self.forgotten.append(digest)


def tokens_of(seed: int, length: int) -> tuple[int, ...]:
    """A prompt."""
    draw = random.Random(seed)
    return tuple(draw.randrange(EOS) for _ in range(length))
