"""No block is lost or owned twice, whatever tables do."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runtime.blocks import BlockPool

OPERATIONS = st.lists(st.tuples(st.sampled_from(["grow", "release", "share"]), st.integers(0, 5), st.integers(0, 40)))


@given(num_blocks=st.integers(1, 12), block_tokens=st.integers(1, 5), operations=OPERATIONS)
def test_books_balance(num_blocks: int, block_tokens: int, operations: list[tuple[str, int, int]]) -> None:
    pool = BlockPool(num_blocks, block_tokens)
    tables: list[list[int]] = [[] for _ in range(6)]
    for what, index, amount in operations:
        table = tables[index]
        if what == "grow":
            before, free = list(table), pool.num_free
            if pool.grow(table, amount):
                assert len(table) * block_tokens >= amount
                assert table[: len(before)] == before
            else:
                assert table == before
                assert pool.num_free == free < pool.needed(amount) - len(before)
        elif what == "release":
            pool.release(table)
            assert table == []
        elif not tables[(index + 1) % 6]:
            tables[(index + 1) % 6] = list(table)
            pool.share(table)
        held = [block for table in tables for block in table]
        assert pool.num_free + len(set(held)) == num_blocks
        for block in range(num_blocks):
            assert pool.references(block) == held.count(block)


def test_tables_that_do_not_share_have_different_blocks() -> None:
    pool = BlockPool(4, 2)
    first: list[int] = []
    second: list[int] = []
    assert pool.grow(first, 4)
    assert pool.grow(second, 3)
    assert not set(first) & set(second)
    assert not pool.grow(first, 5)


def test_a_block_cannot_be_freed_twice() -> None:
    pool = BlockPool(2, 2)
    table: list[int] = []
    pool.grow(table, 2)
    twin = list(table)
    pool.release(table)
    with pytest.raises(ValueError, match="free already"):
        pool.release(twin)
    with pytest.raises(ValueError, match="is free"):
        pool.share([0])


@pytest.mark.parametrize(("blocks", "tokens"), [(0, 1), (1, 0)])
def test_an_empty_pool_is_refused(blocks: int, tokens: int) -> None:
    with pytest.raises(ValueError, match="a pool of"):
        BlockPool(blocks, tokens)
