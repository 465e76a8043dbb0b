"""No block is lost or owned twice, whatever tables do."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runtime.blocks import BlockPool

WHAT = ["grow", "grow", "release", "share", "publish", "publish", "find", "withdraw"]
OPERATIONS = st.lists(st.tuples(st.sampled_from(WHAT), st.integers(0, 5), st.integers(0, 40)), max_size=60)


@given(num_blocks=st.integers(1, 12), block_tokens=st.integers(1, 5), operations=OPERATIONS)
def test_books_balance(num_blocks: int, block_tokens: int, operations: list[tuple[str, int, int]]) -> None:
    pool = BlockPool(num_blocks, block_tokens)
    tables: list[list[int]] = [[] for _ in range(6)]
    known: dict[bytes, int] = {}
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
        elif what == "share" and not tables[(index + 1) % 6]:
            tables[(index + 1) % 6] = list(table)
            pool.share(table)
        elif what == "publish" and table:
            block, key = table[amount % len(table)], b"%d" % (amount % 7)
            fresh = key not in known and block not in known.values()
            pool.publish(block, key)
            if fresh:
                known[key] = block
        elif what == "find" and not table:
            key = b"%d" % (amount % 7)
            found = pool.find([key])
            assert found == ([known[key]] if key in known else [])
            free, takes = pool.num_free, pool.takes(found, block_tokens)
            pool.share(found)
            table.extend(found)
            if pool.grow(table, block_tokens):
                assert free - pool.num_free == takes
        elif what == "withdraw":
            pool.withdraw(table)
            known = {key: block for key, block in known.items() if block not in table}
        held = [block for table in tables for block in table]
        known = {key: block for key, block in known.items() if pool.find([key])}  # the others were evicted
        assert pool.num_free + len(set(held)) == num_blocks
        assert pool.num_cached == len(known)
        assert all(pool.find([key]) == [block] for key, block in known.items())
        for block in range(num_blocks):
            assert pool.references(block) == held.count(block)


def test_held_blocks_are_never_evicted_and_idle_ones_only_when_none_is_free() -> None:
    pool = BlockPool(5, 1)
    held, idle, more = list[int](), list[int](), list[int]()
    pool.grow(held, 1)
    pool.grow(idle, 2)
    pool.publish(held[0], b"held")
    pool.publish(idle[0], b"first")
    pool.publish(idle[1], b"second")
    pool.release(idle)
    assert pool.num_free == 4
    assert pool.grow(more, 2)
    assert pool.num_cached == 3
    assert pool.grow(more, 4)
    assert pool.num_cached == 1
    assert not pool.grow(more, 5)
    assert pool.find([b"held"]) == held


def test_idle_blocks_leave_in_the_order_of_their_last_use_the_end_of_a_chain_first() -> None:
    pool = BlockPool(4, 1)
    chain, other, again = list[int](), list[int](), list[int]()
    pool.grow(chain, 3)
    for index, block in enumerate(chain):
        pool.publish(block, b"chain %d" % index)
    pool.grow(other, 1)
    pool.publish(other[0], b"other")
    pool.release(other)
    pool.release(chain)
    again = pool.find([b"other"])
    pool.share(again)
    pool.release(again)
    left, taken = [], list[int]()
    for size in range(1, 5):
        pool.grow(taken, size)
        left.append([key for key in (b"chain 0", b"chain 1", b"chain 2", b"other") if pool.find([key])])
    assert left == [[b"chain 0", b"chain 1", b"other"], [b"chain 0", b"other"], [b"other"], []]


def test_what_was_withdrawn_is_free_when_it_is_let_go() -> None:
    pool = BlockPool(2, 1)
    table: list[int] = []
    pool.grow(table, 1)
    pool.publish(table[0], b"key")
    pool.withdraw(table)
    assert pool.find([b"key"]) == []
    pool.release(table)
    assert (pool.num_free, pool.num_cached) == (2, 0)
    with pytest.raises(ValueError, match="is free"):
        pool.publish(0, b"key")


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
