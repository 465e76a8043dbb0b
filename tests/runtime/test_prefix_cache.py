"""What is computed once is found again by those who may find it, and by nobody else."""

import hashlib
from types import SimpleNamespace
from typing import Any

import pytest

from runtime import prefix_cache
from runtime.prefix_cache import PrefixCache
from runtime.protocol import Submit
from tests.runtime.fakes import answer, ref, submit, tokens_of
from tests.runtime.rig import Rig

PROMPT = tokens_of(1, 19)  # four full blocks of 4, and 3 tokens


def cached(rig: Rig, request: Submit, owner: int = 1) -> int:
    """Runs one request to its end; how many tokens of its prompt were found."""
    rig.submit(request, owner)
    rig.run()
    assert rig.tokens(request.sequence_id, owner) == answer(request)
    return rig.last(request.sequence_id, owner).cached_tokens


def starts(rig: Rig, prompt: tuple[int, ...]) -> list[int]:
    """Where each row that computed a part of this prompt began."""
    rows = [row for batch in rig.runner.batches for row in batch.rows]
    return [row.start for row in rows if row.start < len(prompt) and tuple(row.history[: len(prompt)]) == prompt]


def test_a_prompt_is_computed_once() -> None:
    rig = Rig()
    assert cached(rig, submit(1, PROMPT)) == 0
    assert cached(rig, submit(2, PROMPT, seed=8), owner=2) == 16
    assert starts(rig, PROMPT) == [0, 16]
    stats = rig.engine.stats()
    assert (stats.prefix_hit_tokens, stats.prefix_prompt_tokens, stats.free_blocks) == (16, 38, 64)
    assert stats.cached_blocks > 4


def test_the_last_token_of_a_prompt_is_always_computed() -> None:
    rig = Rig()
    whole, shorter, longer = PROMPT[:16], PROMPT[:15], PROMPT[:17]
    assert [cached(rig, submit(i, text)) for i, text in enumerate((whole, whole, shorter, longer))] == [0, 12, 12, 16]


def test_a_conversation_goes_on_where_it_stopped() -> None:
    rig = Rig()
    first = submit(1, PROMPT, max_tokens=10)
    cached(rig, first)
    said = (*PROMPT, *answer(first))
    assert cached(rig, submit(2, (*said, 5, 6, 7))) == 28  # 29 were said, and the last was never computed


def test_prompts_share_up_to_the_block_in_which_they_differ() -> None:
    rig = Rig()
    cached(rig, submit(1, PROMPT))
    other = (*PROMPT[:9], (PROMPT[9] + 1) % 90, *PROMPT[10:])
    assert cached(rig, submit(2, other)) == 8


@pytest.mark.parametrize(
    ("account", "adapter"), [("b", None), ("b", "x"), ("a", None), ("a", "y"), ("a", "x2"), ("A", "x"), ("a ", "x")]
)
def test_only_the_same_account_and_weights_find_it(account: str, adapter: str | None) -> None:
    rig = Rig()
    assert cached(rig, submit(1, PROMPT, account="a", adapter=ref("x"))) == 0
    assert cached(rig, submit(2, PROMPT, account=account, adapter=None if adapter is None else ref(adapter))) == 0
    assert cached(rig, submit(3, PROMPT, account="a", adapter=ref("x"))) == 16


def test_an_adapter_that_left_the_device_and_came_back_finds_its_blocks() -> None:
    rig = Rig(rows=8)
    cached(rig, submit(1, PROMPT, adapter=ref("x")))
    cached(rig, submit(2, PROMPT, adapter=ref("y")))
    assert rig.engine.stats().evictions == 1
    assert cached(rig, submit(3, PROMPT, adapter=ref("x"))) == 16


@pytest.mark.parametrize("second", [submit(2, PROMPT, account="b"), submit(2, PROMPT, adapter=ref("x"))])
def test_control_keys_without_account_and_adapter_are_caught(second: Submit, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prefix_cache, "_root", lambda *_: b"root")
    rig = Rig()
    cached(rig, submit(1, PROMPT))
    with pytest.raises(AssertionError, match="a block of another"):
        cached(rig, second)


def test_control_keys_without_the_past_are_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    def unchained(self: PrefixCache, sequence: Any, secret: bytes, num_blocks: int) -> None:
        keys = sequence.block_keys
        for index in range(len(keys), num_blocks):
            keys.append(repr((index, sequence.tokens[index * 4 : index * 4 + 4])).encode())

    monkeypatch.setattr(PrefixCache, "_extend", unchained)
    rig = Rig()
    cached(rig, submit(1, (9, *PROMPT[1:8], *PROMPT[8:])))
    cached(rig, submit(2, (8, *PROMPT[1:4], 9)))
    with pytest.raises(AssertionError, match="a block with another past"):
        cached(rig, submit(3, (8, *PROMPT[1:])))


def test_processes_have_secrets_of_their_own() -> None:
    rigs = Rig(), Rig()
    for rig in rigs:
        cached(rig, submit(1, PROMPT))
    first, second = (set(rig.engine._blocks._by_key) for rig in rigs)
    assert len(first) == len(second) > 0
    assert not first & second


def test_account_and_digest_cannot_be_mistaken_for_each_other() -> None:
    parties = [
        ("a", "b"),
        ("a", None),
        ("ab", None),
        ("", "ab"),
        ("a", "null"),
        ('a","b', None),
        ('a"', "b"),
        ("a", ""),
    ]
    assert len({prefix_cache._root(b"secret", *party) for party in parties}) == len(parties)


def test_who_arrives_in_mid_prompt_finds_what_is_computed_by_then() -> None:
    rig = Rig(step_tokens=10, max_running=4)
    first, second = submit(1, tokens_of(2, 40)), submit(2, tokens_of(2, 40), seed=9)
    rig.submit(first)
    rig.step()
    rig.step()
    rig.submit(second)
    rig.run()
    assert [rig.tokens(1), rig.tokens(2)] == [answer(first), answer(second)]
    assert (rig.last(1).cached_tokens, rig.last(2).cached_tokens) == (0, 36)


def test_those_who_start_in_one_step_do_not_share() -> None:
    rig = Rig()
    requests = [submit(i, PROMPT, seed=i) for i in range(3)]
    for request in requests:
        rig.submit(request)
    rig.run()
    assert [rig.tokens(i) for i in range(3)] == [answer(request) for request in requests]
    assert [rig.last(i).cached_tokens for i in range(3)] == [0, 0, 0]


def test_running_sequences_share_blocks_so_that_more_of_them_fit() -> None:
    rig = Rig(num_blocks=32)
    prompt = tokens_of(3, 60)
    requests = [submit(i, prompt, seed=i, max_tokens=10) for i in range(4)]
    rig.submit(requests[0])
    rig.step()
    for request in requests[1:]:
        rig.submit(request)
    rig.step()
    assert rig.engine.stats().running == 4
    shared = rig.engine._scheduler.running[0].block_table[0]
    assert rig.engine._blocks.references(shared) == 4
    rig.run()
    assert [rig.tokens(i) for i in range(4)] == [answer(request) for request in requests]
    assert rig.engine.stats().preemptions == 0


def test_a_failed_step_leaves_nothing_behind() -> None:
    rig = Rig(step_tokens=16)
    rig.submit(submit(1, tokens_of(2, 40)))
    rig.step()
    assert rig.engine.stats().cached_blocks == 4
    rig.runner.fail_next = RuntimeError("planted")
    rig.step()
    assert rig.last(1).failure is not None
    assert rig.engine.stats().cached_blocks == 0
    assert cached(rig, submit(2, tokens_of(2, 40))) == 0


def test_numbers_that_overflow_leave_nothing_behind_and_others_keep_theirs() -> None:
    rig = Rig(step_tokens=16)
    cached(rig, submit(1, PROMPT, adapter=ref("good")))
    rig.submit(submit(2, tokens_of(2, 40), adapter=ref("bad")))
    rig.step()
    rig.load("bad")
    rig.step()
    rig.submit(submit(3, tokens_of(2, 40), adapter=ref("bad")))
    rig.runner.broken_adapters = {"bad"}
    rig.run()
    assert rig.last(2).failure is not None
    assert rig.last(3).failure is not None
    rig.runner.broken_adapters = set()
    assert cached(rig, submit(4, tokens_of(2, 40), adapter=ref("bad"))) == 0
    assert cached(rig, submit(5, PROMPT, adapter=ref("good"))) == 16


def test_what_an_aborted_sequence_computed_is_found() -> None:
    rig = Rig(step_tokens=16)
    rig.submit(submit(1, tokens_of(2, 40)))
    rig.step()
    rig.engine.abort(1, 1)
    assert rig.engine.stats().free_blocks == 64
    assert cached(rig, submit(2, tokens_of(2, 40))) == 16


def test_a_preempted_sequence_finds_its_own_blocks_and_reports_only_what_it_found_at_first() -> None:
    computed = {}
    for on in (True, False):
        rig = Rig(num_blocks=12, prefix_cache=on)
        requests = [submit(i, tokens_of(i, 8), max_tokens=30) for i in range(4)]
        for request in requests:
            rig.submit(request)
        rig.run()
        assert rig.engine.stats().preemptions > 0
        assert [rig.tokens(i) for i in range(4)] == [answer(request) for request in requests]
        assert [rig.last(i).cached_tokens for i in range(4)] == [0, 0, 0, 0]
        computed[on] = sum(len(row.token_ids) for batch in rig.runner.batches for row in batch.rows)
    assert computed[True] < computed[False]


def test_switched_off_nothing_is_kept() -> None:
    rig = Rig(prefix_cache=False)
    assert [cached(rig, submit(i, PROMPT)) for i in (1, 2)] == [0, 0]
    assert rig.engine.stats().cached_blocks == 0


def test_a_full_cache_serves_new_prompts_from_what_was_used_least_recently() -> None:
    rig = Rig(num_blocks=10)
    old, middle, new = (tokens_of(i, 17) for i in (4, 5, 6))
    cached(rig, submit(1, old, max_tokens=1))
    cached(rig, submit(2, middle, max_tokens=1))
    assert cached(rig, submit(3, old, max_tokens=1)) == 16
    assert cached(rig, submit(4, new, max_tokens=1)) == 0  # takes 2 free blocks and the last 3 of `middle`
    assert cached(rig, submit(5, old, max_tokens=1)) == 16
    assert cached(rig, submit(6, middle, max_tokens=1)) == 4


def test_an_account_is_charged_for_what_is_computed_only() -> None:
    rig = Rig(max_running=1, num_blocks=128, max_waiting=64)
    cached(rig, submit(0, tokens_of(0, 40), account="warm", max_tokens=1))
    for i in range(1, 11):
        rig.submit(submit(i, tokens_of(0, 40), account="warm", max_tokens=1, seed=i))
        rig.submit(submit(100 + i, tokens_of(i, 40), account="cold", max_tokens=1))
    for _ in range(10):
        rig.step()
    served = [number for (_, number), said in rig.outputs.items() if said]
    assert sum(number <= 10 for number in served) >= 8  # the first of them among these, which was cold too


def test_a_block_is_hashed_once_however_long_its_sequence_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    hashed: list[int] = []

    def counted(*args: Any, **options: Any) -> Any:
        hashed.append(1)
        return hashlib.blake2b(*args, **options)

    monkeypatch.setattr(prefix_cache, "hashlib", SimpleNamespace(blake2b=counted))
    rig = Rig(num_blocks=13)
    rig.submit(submit(1, tokens_of(1, 20), max_tokens=25))
    rig.submit(submit(2, tokens_of(2, 30), max_tokens=15))
    for _ in range(11):
        rig.step()
    assert rig.engine.stats().waiting == 1
    assert len(hashed) == (1 + 7) + (1 + 7)  # a root each; 30 computed tokens of the first, 29 of the second's prompt
