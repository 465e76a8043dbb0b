"""The engine over a fake device: what comes out, when, and what is free afterwards."""

from typing import Any

import msgspec
import pytest

from runtime.batch import Batch
from runtime.errors import AdapterInvalid, DeviceLost, DuplicateId
from runtime.protocol import Failure, SequenceOutput
from tests.runtime.fakes import EOS, FakeRunner, answer, next_token, ref, submit, tokens_of
from tests.runtime.rig import Rig


def test_a_sequence_runs_to_its_length_and_frees_everything() -> None:
    rig = Rig()
    request = submit(1, max_tokens=5)
    rig.submit(request)
    rig.run()
    assert rig.tokens(1) == answer(request)
    last = rig.last(1)
    assert (last.finish_reason, last.prompt_tokens, last.completion_tokens) == ("length", 3, 5)
    assert rig.engine.stats().free_blocks == 64
    assert rig.engine.num_live == 0


def test_tokens_are_streamed_one_step_at_a_time() -> None:
    rig = Rig()
    rig.submit(submit(1, max_tokens=3))
    for expected in (1, 2, 3):
        rig.step()
        assert len(rig.tokens(1)) == expected


def test_a_stop_token_ends_the_answer_uncounted_in_the_text_but_counted_in_usage() -> None:
    rig = Rig()
    whole = answer(submit(1, max_tokens=8))
    request = submit(1, max_tokens=8, stop=(whole[3],))
    rig.submit(request)
    rig.run()
    assert rig.tokens(1) == whole[: whole.index(whole[3])]
    assert rig.last(1).finish_reason == "stop"
    assert rig.last(1).completion_tokens == whole.index(whole[3]) + 1


def test_the_models_own_end_token_stops_too() -> None:
    class Ends(FakeRunner):
        def _row(self, row):  # type: ignore[no-untyped-def]
            token = super()._row(row)
            return EOS if token is not None and len(row.history) == 5 else token

    rig = Rig()
    rig.use(Ends())
    rig.submit(submit(1, max_tokens=8))
    rig.run()
    assert len(rig.tokens(1)) == 2
    assert (rig.last(1).finish_reason, rig.last(1).completion_tokens) == ("stop", 3)


def test_an_ignored_end_does_not_stop_but_a_callers_stop_does() -> None:
    class Ends(FakeRunner):
        def _row(self, row):  # type: ignore[no-untyped-def]
            token = super()._row(row)
            return EOS if token is not None and len(row.history) == 5 else token

    rig = Rig()
    rig.use(Ends())
    for number, stops in ((1, ()), (2, (EOS,))):
        request = submit(number, max_tokens=8, stop=stops)
        rig.submit(
            msgspec.structs.replace(request, sampling=msgspec.structs.replace(request.sampling, ignore_eos=True))
        )
    rig.run()
    assert (rig.last(1).finish_reason, rig.last(1).completion_tokens, rig.tokens(1)[2]) == ("length", 8, EOS)
    assert (rig.last(2).finish_reason, rig.last(2).completion_tokens) == ("stop", 3)


@pytest.mark.parametrize(
    "wish",
    [
        {"min_p": 1.5},
        {"min_p": float("nan")},
        {"logit_bias": ((10**6, 1.0),)},
        {"logit_bias": ((-1, 1.0),)},
        {"logit_bias": ((1, float("inf")),)},
        {"logit_bias": ((1, 1.0),) * 301},
        {"stop_token_ids": (1,) * 257},
        {"top_logprobs": 21},
        {"top_logprobs": -1},
    ],
)
def test_wishes_beyond_every_bound_are_refused_at_the_door(wish: dict[str, Any]) -> None:
    rig = Rig()
    request = submit(1)
    rig.submit(msgspec.structs.replace(request, sampling=msgspec.structs.replace(request.sampling, **wish)))
    rig.run()
    last = rig.last(1)
    assert (last.finish_reason, last.failure and last.failure.kind) == ("error", "internal")


def test_one_step_mixes_adapters_accounts_and_the_base() -> None:
    rig = Rig()
    requests = [submit(i, account=f"account-{i}", adapter=ref(f"x{i}") if i else None) for i in range(4)]
    for request in requests:
        rig.submit(request)
    rig.run()
    assert [rig.tokens(i) for i in range(4)] == [answer(request) for request in requests]
    widest = max(rig.runner.batches, key=lambda batch: len(batch.rows))
    assert [row.slot for row in widest.rows] == [-1, 0, 1, 2] or len(widest.rows) == 3
    timing = rig.last(3).timing
    assert timing is not None
    assert (timing.batch_adapters, timing.adapter_source) == (3, "object")
    assert timing.batch_accounts >= 3


def test_long_prompts_are_cut_into_chunks_and_decodes_go_on_beside_them() -> None:
    rig = Rig(step_tokens=16)
    first, long = submit(1, max_tokens=20), submit(2, tokens_of(1, 60), max_tokens=3)
    rig.submit(first)
    rig.step()
    rig.submit(long)
    rig.run()
    assert rig.tokens(1) == answer(first)
    assert rig.tokens(2) == answer(long)
    chunks = [row for batch in rig.runner.batches for row in batch.rows if row.prompt_tokens == 60]
    assert [(row.start, len(row.token_ids)) for row in chunks[:4]] == [(0, 15), (15, 15), (30, 15), (45, 15)]
    assert [row.samples for row in chunks[:4]] == [False, False, False, True]
    assert all(sum(len(row.token_ids) for row in batch.rows) <= 16 for batch in rig.runner.batches)


def test_preempted_sequences_say_the_same_as_undisturbed_ones() -> None:
    rig = Rig(num_blocks=12)
    requests = [submit(i, tokens_of(i, 8), max_tokens=30) for i in range(4)]
    for request in requests:
        rig.submit(request)
    rig.run()
    assert rig.engine.stats().preemptions > 0
    assert [rig.tokens(i) for i in range(4)] == [answer(request) for request in requests]
    assert rig.engine.stats().free_blocks == 12


def test_the_oldest_sequence_is_never_preempted() -> None:
    rig = Rig(num_blocks=12)
    for i in range(4):
        rig.submit(submit(i, tokens_of(i, 8), max_tokens=30))
    rig.run()
    starts = [
        row.start for batch in rig.runner.batches for row in batch.rows if list(row.history[:8]) == [*tokens_of(0, 8)]
    ]
    assert starts == sorted(starts)


@pytest.mark.parametrize(
    ("request_", "kind"),
    [
        (submit(1, tokens_of(1, 200), max_tokens=100), "too_long"),
        (submit(1, tokens_of(1, 30), max_tokens=40), "too_long"),
        (submit(1, ()), "internal"),
        (submit(1, (1, 97)), "internal"),
        (submit(1, (-1,)), "internal"),
        (submit(1, max_tokens=0), "internal"),
        (submit(1, timeout_s=0.0), "timeout"),
        (submit(1, timeout_s=float("nan")), "timeout"),
        (submit(1, adapter=ref("x", rank=33)), "adapter_too_large"),
    ],
)
def test_what_can_never_run_is_refused_in_the_next_step(request_: object, kind: str) -> None:
    rig = Rig(num_blocks=16)
    rig.submit(request_)  # type: ignore[arg-type]
    rig.step()
    failure = rig.last(1).failure
    assert failure is not None
    assert failure.kind == kind
    assert rig.engine.num_live == 0
    assert not rig.loads.started


def test_a_lone_sequence_may_fill_the_whole_cache() -> None:
    rig = Rig(num_blocks=16)
    request = submit(1, tokens_of(1, 30), max_tokens=35)
    rig.submit(request)
    rig.run()
    assert rig.tokens(1) == answer(request)


def test_a_failed_step_ends_its_own_sequences_only() -> None:
    rig = Rig(max_running=2)
    requests = [submit(i) for i in range(3)]
    for request in requests:
        rig.submit(request)
    rig.runner.fail_next = RuntimeError("CUDA out of memory")
    rig.step()
    failures = [rig.last(i).failure for i in range(2)]
    assert [failure.kind for failure in failures if failure] == ["internal", "internal"]
    assert all("CUDA" not in failure.message for failure in failures if failure)
    rig.run()
    assert rig.tokens(2) == answer(requests[2])
    assert rig.engine.stats().free_blocks == 64


def test_a_lost_device_passes_through() -> None:
    rig = Rig()
    rig.submit(submit(1))
    rig.runner.fail_next = DeviceLost("sticky")
    with pytest.raises(DeviceLost):
        rig.engine.step()


def test_an_adapter_that_overflows_ends_its_own_sequences_and_no_others() -> None:
    rig = Rig()
    bad, good, base = submit(1, adapter=ref("bad")), submit(2, adapter=ref("good")), submit(3)
    for request in (bad, good, base):
        rig.submit(request)
    rig.runner.broken_adapters = {"bad"}
    rig.run()
    failure = rig.last(1).failure
    assert failure is not None
    assert failure.kind == "adapter_corrupt"
    assert rig.tokens(2) == answer(good)
    assert rig.tokens(3) == answer(base)


def test_a_deadline_ends_a_sequence_running_or_waiting() -> None:
    rig = Rig(max_running=1)
    rig.submit(submit(1, max_tokens=100, timeout_s=5.0))
    rig.submit(submit(2, max_tokens=100, timeout_s=5.0))
    rig.step()
    rig.step(seconds=5.0)
    rig.step()
    for sequence_id in (1, 2):
        failure = rig.last(sequence_id).failure
        assert failure is not None
        assert failure.kind == "timeout"
    assert rig.engine.num_live == 0
    assert rig.engine.stats().free_blocks == 64


def test_abort_frees_at_once_and_says_nothing() -> None:
    rig = Rig(max_running=1)
    rig.submit(submit(1, max_tokens=100))
    rig.submit(submit(2, adapter=ref("x")))
    rig.step()
    rig.engine.abort(1, 1)
    rig.engine.abort(1, 2)
    rig.engine.abort(1, 99)
    assert rig.engine.stats().free_blocks == 64
    before = len(rig.outputs[1, 1])
    rig.step()
    assert len(rig.outputs[1, 1]) == before
    assert not rig.outputs[1, 2]


def test_a_closed_connection_ends_its_own_sequences_only() -> None:
    rig = Rig()
    mine, yours = submit(1, max_tokens=6), submit(1, max_tokens=6)
    rig.submit(mine, owner=1)
    rig.submit(yours, owner=2)
    rig.step()
    assert rig.engine.abort_owner(1) == 1
    rig.run()
    assert rig.tokens(1, owner=2) == answer(yours)
    assert len(rig.tokens(1, owner=1)) == 1


def test_an_id_cannot_be_used_twice_at_once() -> None:
    rig = Rig()
    rig.submit(submit(1))
    with pytest.raises(DuplicateId):
        rig.submit(submit(1))
    rig.submit(submit(1), owner=2)


def test_the_queue_is_bounded_and_says_when_to_come_back() -> None:
    rig = Rig(max_running=1, max_waiting=3)
    rig.submit(submit(0, max_tokens=50))
    rig.step()
    for i in range(1, 6):
        rig.submit(submit(i))
    rig.step()
    for i in (4, 5):
        failure = rig.last(i).failure
        assert failure is not None
        assert failure.kind == "overloaded"
        assert failure.retry_after_s is not None
        assert failure.retry_after_s >= 1
    assert rig.engine.stats().refused == 2
    rig.run()
    assert all(rig.last(i).finish_reason == "length" for i in range(4))


def test_a_flood_of_one_account_displaces_its_own_newest_not_the_others() -> None:
    rig = Rig(max_running=1, max_waiting=4)
    rig.submit(submit(0, max_tokens=50, account="flood"))
    rig.step()
    for i in range(1, 5):
        rig.submit(submit(i, account="flood"))
    rig.submit(submit(5, account="small"))
    rig.run()
    assert [i for i in range(6) if rig.last(i).failure] == [4]


def test_random_seeds_are_made_for_those_who_give_none() -> None:
    rig = Rig()
    rig.engine._random_seed = iter([11, 12]).__next__
    rig.submit(submit(1, seed=None, max_tokens=1))
    rig.submit(submit(2, seed=None, max_tokens=1))
    rig.submit(submit(3, seed=-5, max_tokens=1))
    rig.run()
    assert rig.tokens(1) == [next_token([1, 2, 3], "", 11)]
    assert rig.tokens(2) == [next_token([1, 2, 3], "", 12)]
    assert all(0 <= row.seed < 2**63 for batch in rig.runner.batches for row in batch.rows)


def test_the_base_never_waits_for_adapters() -> None:
    rig = Rig()
    for i in range(20):
        rig.submit(submit(i, adapter=ref(f"x{i}")))
    base = submit(99)
    rig.submit(base)
    for _ in range(4):
        rig.step()
    assert rig.tokens(99) == answer(base)
    assert rig.engine.stats().waiting_for_adapter == 20


def test_timing_tells_queue_adapter_and_first_token() -> None:
    rig = Rig()
    rig.submit(submit(1, adapter=ref("x"), max_tokens=2))
    rig.step(seconds=3.0)
    rig.load("x")
    rig.step(seconds=1.0)
    rig.step()
    timing = rig.last(1).timing
    assert timing is not None
    assert (timing.adapter_wait_s, timing.queue_s, timing.first_token_s, timing.total_s) == (3.0, 3.0, 3.0, 4.0)
    rig.submit(submit(2, adapter=ref("x"), max_tokens=1))
    rig.run()
    timing = rig.last(2).timing
    assert timing is not None
    assert (timing.adapter_wait_s, timing.adapter_source) == (0.0, "device")


def test_a_failed_load_fails_those_who_wait_and_a_later_request_tries_again() -> None:
    rig = Rig()
    rig.submit(submit(1, adapter=ref("x")))
    rig.submit(submit(2, adapter=ref("y")))
    rig.step()
    rig.fail_load("x", Failure("adapter_missing", "no such object"))
    rig.load("y")
    rig.run()
    failure = rig.last(1).failure
    assert failure is not None
    assert failure.kind == "adapter_missing"
    assert rig.last(2).finish_reason == "length"
    again = submit(3, adapter=ref("x"))
    rig.submit(again)
    rig.run()
    assert rig.tokens(3) == answer(again)


@pytest.mark.parametrize(
    ("error", "kind"), [(AdapterInvalid("NaN"), "adapter_corrupt"), (RuntimeError("copy"), "internal")]
)
def test_an_adapter_that_cannot_be_written_fails_those_who_wait(error: Exception, kind: str) -> None:
    rig = Rig()
    rig.submit(submit(1, adapter=ref("x")))
    rig.step()
    rig.load("x")
    rig.runner.fail_next = error
    rig.step()
    failure = rig.last(1).failure
    assert failure is not None
    assert failure.kind == kind
    assert rig.engine.stats().adapter_rows_used == 0
    assert not rig.loads.leased


def test_a_load_is_written_in_slices_while_others_decode() -> None:
    rig = Rig(copy_bytes=100)
    rig.submit(submit(1, max_tokens=10))
    rig.submit(submit(2, adapter=ref("x"), max_tokens=2))
    rig.step()
    rig.load("x")
    layers = []
    while not rig.outputs[1, 2]:
        rig.step()
        layers.append(rig.runner.slots[0][3])
    assert layers == [1, 2, 3, 4]
    assert len(rig.tokens(1)) == 5
    arrived = [status for status in rig.statuses if status.resident == "device"]
    assert [visit.tier for visit in arrived[0].visits] == ["disk", "memory", "device"]


def test_outputs_of_a_step_are_plain_frames() -> None:
    rig = Rig()
    rig.submit(submit(1, max_tokens=2))
    rig.step()
    assert rig.outputs[1, 1] == [SequenceOutput(sequence_id=1, token_ids=(answer(submit(1))[0],))]


def test_prompts_are_cut_finer_on_a_slow_device_and_decodes_go_on() -> None:
    class Slow(FakeRunner):
        """A tenth of a second per token."""

        def execute(self, batch: Batch) -> list[int]:
            rig.clock.now += 0.1 * sum(len(row.token_ids) for row in batch.rows)
            return super().execute(batch)

    rig = Rig(num_blocks=128, step_tokens=128)
    rig.use(Slow(num_blocks=128))
    first, second = submit(1, tokens_of(1, 200), max_tokens=30), submit(2, tokens_of(2, 200), max_tokens=30)
    rig.submit(first)
    rig.submit(second)
    rig.run()
    assert rig.tokens(1) == answer(first)
    assert rig.tokens(2) == answer(second)
    widths = [sum(len(row.token_ids) for row in batch.rows) for batch in rig.runner.batches]
    assert widths[0] == 128
    assert max(widths[1:]) <= 16


def test_chunks_grow_on_a_fast_device() -> None:
    rig = Rig(num_blocks=64, step_tokens=240)
    rig.engine._steps.pace.budget = 16
    request = submit(1, tokens_of(1, 240), max_tokens=2)
    rig.submit(request)
    rig.run()
    assert rig.tokens(1) == answer(request)
    widths = [len(row.token_ids) for batch in rig.runner.batches for row in batch.rows]
    assert widths == [16, 32, 64, 128, 1]


def test_who_will_not_wait_is_taken_only_where_it_starts_at_once() -> None:
    rig = Rig(max_running=2)
    picky = [msgspec.structs.replace(submit(i, max_tokens=20), only_if_free=True) for i in range(4)]
    for request in picky[:3]:  # between two steps: nothing runs yet, and two rows are free
        rig.submit(request)
    rig.step()
    refused = rig.last(2).failure
    assert refused is not None
    assert (refused.kind, refused.retry_after_s) == ("overloaded", 1.0)
    rig.submit(submit(4))  # this one waits
    rig.step()
    rig.submit(picky[3])
    rig.run()
    assert [i for i in range(5) if rig.last(i).failure] == [2, 3]
    rig.submit(msgspec.structs.replace(picky[3], sequence_id=5))
    rig.run()
    assert rig.last(5).finish_reason == "length"


def test_who_will_not_wait_for_blocks_may_wait_for_its_adapter() -> None:
    rig = Rig(num_blocks=8, max_running=8)
    rig.submit(submit(1, tokens_of(1, 20), max_tokens=8))
    rig.step()
    large = msgspec.structs.replace(submit(2, tokens_of(2, 20), max_tokens=2), only_if_free=True)
    small = msgspec.structs.replace(submit(3, adapter=ref("cold"), max_tokens=2), only_if_free=True)
    for request in (large, small):
        rig.submit(request)
    rig.run()
    assert rig.last(2).failure is not None
    assert rig.last(3).finish_reason == "length"
