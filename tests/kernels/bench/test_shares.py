"""Time for processes one after the other."""

import pytest

from kernels.bench.shares import LEAST_S, START_S, Shares


def test_what_one_does_not_use_is_there_for_the_others() -> None:
    now = [0.0]
    shares = Shares(100.0, 4, lambda: now[0])
    assert shares.next() == pytest.approx(25 - START_S)
    now[0] = 10.0  # a peer that is missing
    assert shares.next() == pytest.approx(30 - START_S)
    now[0] = 95.0
    assert shares.next() == LEAST_S
    now[0] = 200.0
    assert [shares.next(), shares.next()] == [LEAST_S, LEAST_S]
