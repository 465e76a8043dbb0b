"""The CPU's program against torch on the same weights, over batches of any mix, also longer than one pass."""

import random
from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from transformers import LlamaConfig

from kernels.cpu import compiling
from runtime.batch import BASE_SLOT, Batch, Row
from runtime.errors import RunnerMisused
from runtime.layers.cpu_step import PASS_TOKENS
from runtime.runner import TorchRunner
from tests.runtime.bases import CONFIGS
from tests.runtime.oracle import GREEDY, load_runner, make_base
from tests.runtime.random_adapters import write_random_adapter
from tests.runtime.rows import changed

BLOCK_TOKENS = 8
RANKS = {0: (0, 5), 1: (9, 16), 2: (40, 3)}  # slot -> (row offset, rank)
Runners = tuple[TorchRunner, TorchRunner]


@pytest.fixture(scope="module", params=["llama-long", "gemma2-gqa"])
def runners(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Runners:
    """(the program, torch) with the same adapters."""
    folder = tmp_path_factory.mktemp("base")
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(CONFIGS, "llama-long", lambda: LlamaConfig(**LONG))
        make_base(request.param, folder)
        both = []
        for numba in (True, False):
            patch.setattr(compiling, "available", numba)
            runner = load_runner(folder, block_tokens=BLOCK_TOKENS, kv_tokens=8192, threads=2)
            for slot, (offset, rank) in RANKS.items():
                write_random_adapter(runner, slot, offset, rank)
            both.append(runner)
    return both[0], both[1]


LONG = {
    "hidden_size": 48,
    "intermediate_size": 70,
    "num_hidden_layers": 2,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "vocab_size": 131,
    "max_position_embeddings": 1024,
    "pad_token_id": None,
}


@st.composite
def batches(draw: st.DrawFn) -> list[tuple[int, list[int]]]:
    """Per sequence its slot and the lengths of the chunks in which its tokens come."""
    sequences = draw(
        st.lists(st.tuples(st.sampled_from([BASE_SLOT, *RANKS]), st.integers(1, 120)), min_size=1, max_size=5)
    )
    return [(slot, _cut(length, draw(st.integers(0, 2**30)))) for slot, length in sequences]


def _cut(length: int, seed: int) -> list[int]:
    rng, chunks = random.Random(seed), list[int]()
    while length:
        chunks.append(min(length, rng.choice([1, 1, 2, 7, 16, 33, 240])))
        length -= chunks[-1]
    return chunks


def steps(sequences: list[tuple[int, list[int]]]) -> Iterator[Batch]:
    """The chunks of all sequences, the first ones together, then the second ones, and so on."""
    rng = random.Random(len(sequences))
    tables, position, free = [], [0] * len(sequences), iter(rng.sample(range(1024), 1024))
    for _, chunks in sequences:
        tables.append([next(free) for _ in range(-(-sum(chunks) // BLOCK_TOKENS))])
    for turn in range(max(len(chunks) for _, chunks in sequences)):
        rows = []
        for number, (slot, chunks) in enumerate(sequences):
            if turn < len(chunks):
                tokens = [rng.randrange(131) for _ in range(chunks[turn])]
                start, position[number] = position[number], position[number] + len(tokens)
                table = tables[number][: -(-position[number] // BLOCK_TOKENS)]
                rows.append(Row(number, tokens, start, table, slot, rng.random() < 0.8, GREEDY, tokens, 0, 0))
        yield Batch(tuple(sorted(rows, key=lambda row: row.slot)))


@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(sequences=batches())
def test_any_batch_gives_torchs_logits(runners: Runners, sequences: list[tuple[int, list[int]]]) -> None:
    program, reference = runners
    for batch in steps(sequences):
        found, wanted = program.logits(batch), reference.logits(batch)
        assert found.shape == wanted.shape
        if len(found):
            assert bool(((found - wanted).norm(dim=1) <= 1e-4 * wanted.norm(dim=1)).all())


def test_a_prompt_longer_than_a_pass_beside_others(runners: Runners) -> None:
    program, reference = runners
    longest = program.max_sequence_tokens
    lengths = [(BASE_SLOT, [longest - 4, 4]), (0, [longest]), (1, [min(longest, 300)]), (2, [1, 1, 1])]
    for batch in steps(lengths):
        assert sum(len(row.token_ids) for row in batch.rows) > PASS_TOKENS or batch.rows[0].start
        found, wanted = program.logits(batch), reference.logits(batch)
        assert bool(((found - wanted).norm(dim=1) <= 1e-4 * wanted.norm(dim=1)).all())


def test_a_slot_that_is_not_ready_is_refused_and_nothing_hangs(runners: Runners) -> None:
    program, _ = runners
    row = Row(1, [5], 0, [0], 7, True, GREEDY, [5], 0, 0)
    with pytest.raises(RunnerMisused, match="slot 7"):
        program.logits(Batch((row,)))
    assert program.logits(Batch((changed(row, slot=BASE_SLOT),))).shape == (1, program.vocab_size)
