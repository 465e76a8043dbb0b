"""Rounds: which ones count, what a failing side does to the others, and what is told apart as other people's work."""

import os
import subprocess
import sys
from collections.abc import Callable, Iterable

from infra.bench.busy import Clocks
from infra.bench.child import Times
from infra.bench.children import ChildFailed, Measured
from infra.bench.rounds import percentile, play, rate_row


def measured(rate: float, others: float = 0.0) -> Measured:
    return Measured(0.1, 1.0, 2.0, int(rate), [], [], others)


def side(values: Iterable[Measured]) -> Callable[[], Measured]:
    return iter(values).__next__


def test_the_first_round_warms_up_and_sides_take_turns() -> None:
    calls: list[str] = []

    def noting(name: str, rate: float) -> Callable[[], Measured]:
        def measure() -> Measured:
            calls.append(name)
            return measured(rate)

        return measure

    rounds = play({"ours": noting("ours", 20), "peer": noting("peer", 10)}, 2)
    assert calls == ["ours", "peer"] * 3
    assert len(rounds.kept) == 2
    row = rate_row("m", rounds, "peer", at_least=3)
    assert (row.value, row.peer_value, row.ratio, row.holds) == (20, 10, 2, False)
    assert row.note == "rounds 20 to 20, peer 10 to 10; CPU ms/token 100.00 vs 200.00"


def test_the_ratio_is_taken_within_rounds() -> None:
    ours = side([measured(1), measured(10), measured(100), measured(30)])
    peer = side([measured(1), measured(5), measured(50), measured(10)])
    row = rate_row("m", play({"ours": ours, "peer": peer}, 3), "peer")
    assert (row.value, row.peer_value, row.ratio) == (30, 10, 2)


def test_a_disturbed_round_is_played_again() -> None:
    warm, busy, quiet = measured(1), measured(5, others=0.5), [measured(10), measured(11)]
    rounds = play({"ours": side([warm, busy, *quiet])}, 2)
    assert [item.rate for item in rounds.of("ours")] == [10, 11]
    assert not rounds.remarks("ours")


def test_patience_ends() -> None:
    now = iter([0.0, 91.0])
    rounds = play({"ours": side(measured(rate, others=0.2) for rate in range(9))}, 2, lambda: next(now))
    assert [item.rate for item in rounds.of("ours")] == [1, 2]


def test_a_machine_that_stays_busy_gets_no_verdict() -> None:
    shares = [0.0, 0.4, 0.3, 0.5, 0.35]
    rounds = play({"ours": side(measured(10, share) for share in shares), "peer": lambda: measured(1)}, 2)
    assert [item.others for item in rounds.of("ours")] == [0.3, 0.35]
    row = rate_row("m", rounds, "peer", at_least=8)
    assert (row.ratio, row.holds) == (10, None)
    assert "others used up to 35% of the CPUs; too busy to judge" in row.note


def test_a_side_that_fails_leaves_and_the_others_go_on() -> None:
    def failing() -> Measured:
        raise ChildFailed("llama.cpp is not built here")

    rounds = play({"ours": lambda: measured(7), "peer": failing}, 3)
    row = rate_row("m", rounds, "peer", at_least=1)
    assert (row.value, row.peer_value, row.ratio, row.holds) == (7, None, None, None)
    assert row.note.endswith("llama.cpp is not built here")
    assert play({"peer": failing}, 3).kept == []


def test_decoding_is_counted_from_the_step_at_which_all_have_answered() -> None:
    # Two sequences; the second one's prompt takes three steps.
    times = Times(
        began=10.0,
        wall=[10.5, 11.0, 12.0, 13.0, 15.0],
        cpu=[1.0, 2.0, 3.0, 5.0, 9.0],
        tokens=[1, 1, 2, 2, 2],
        answered=[1, 1, 2, 2, 2],
    )
    assert times.answer([[], []]) == {
        "first_s": 0.5,
        "decode_s": 3.0,
        "cpu_s": 6.0,
        "tokens": 4,
        "steps_s": [1.0, 2.0],
        "answers": [[], []],
    }


def test_percentiles() -> None:
    values = [float(value) for value in range(100, 0, -1)]
    assert (percentile(values, 0.5), percentile(values, 0.99), percentile([3.0], 0.99)) == (51.0, 100.0, 3.0)


def test_a_trees_own_work_is_told_from_that_of_others() -> None:
    """A grandchild that burns CPU shows in its tree, and as others to a process that is not its ancestor."""
    burn = "import time\nwhile time.process_time() < 0.5: pass"
    code = f"import subprocess, sys\nsubprocess.run([sys.executable, '-c', {burn!r}])"
    nobody = 2**22 + 1  # above any process id
    before_mine, before_others = Clocks.read(os.getpid()), Clocks.read(nobody)
    with subprocess.Popen([sys.executable, "-c", code]) as child:
        most = 0.0
        while child.poll() is None:
            most = max(most, Clocks.read(os.getpid()).tree - before_mine.tree)
    after = Clocks.read(nobody)
    assert most > 0.4
    assert after.tree == 0
    assert after.others(before_others) > 0
