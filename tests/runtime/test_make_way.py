"""No account keeps another out by long answers, and whoever gives way loses nothing of what it says."""

from tests.runtime.fakes import answer, submit
from tests.runtime.rig import Rig


def test_an_account_that_runs_nothing_gets_a_row_of_the_one_that_runs_most() -> None:
    rig = Rig(num_blocks=256, max_running=4)
    long = [submit(number, account="busy", max_tokens=100) for number in range(1, 11)]
    for request in long:
        rig.submit(request)
    for _ in range(5):
        rig.step()
    short = submit(99, account="calm", max_tokens=3)
    rig.submit(short)
    for _ in range(6):
        rig.step()
    assert rig.tokens(99) == answer(short)
    assert rig.engine.stats().preemptions == 1
    rig.run()
    assert [rig.tokens(request.sequence_id) for request in long] == [answer(request) for request in long]


def test_blocks_are_given_up_too_but_never_an_accounts_only_sequence() -> None:
    rig = Rig(num_blocks=24, max_running=8)
    block_tokens = rig.runner.block_tokens
    long = [submit(number, account="busy", max_tokens=6 * block_tokens) for number in range(1, 4)]
    for request in long:
        rig.submit(request)
    for _ in range(4 * block_tokens):
        rig.step()
    large = submit(99, tuple(range(1, 14 * block_tokens)), account="calm", max_tokens=2)
    rig.submit(large)
    for _ in range(8):
        rig.step()
    assert rig.tokens(99) == answer(large)
    assert rig.engine.stats().preemptions == 2  # of three
    rig.run()
    assert [rig.tokens(request.sequence_id) for request in long] == [answer(request) for request in long]


def test_nobody_gives_way_when_every_account_runs_one() -> None:
    rig = Rig(num_blocks=256, max_running=3)
    for number, account in enumerate("abcde", 1):
        rig.submit(submit(number, account=account, max_tokens=10))
    rig.run()
    assert rig.engine.stats().preemptions == 0


def test_a_flood_of_short_requests_does_not_stop_a_long_answer() -> None:
    rig = Rig(num_blocks=256, max_running=2)
    for number in (1, 2):
        rig.submit(submit(number, account="long", max_tokens=30))
    for number in range(3, 200):
        rig.submit(submit(number, account="short", max_tokens=1))
        rig.step()
        if rig.outputs[1, 1][-1].finish_reason is not None:
            return
    raise AssertionError("the long answer did not end")
