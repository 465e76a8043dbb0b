"""The stand-in for graphs finds what graphs would punish."""

import pytest
import torch

from tests.runtime.recorded import HostRead, record


def test_a_replay_reads_and_writes_the_buffers_again() -> None:
    given, out = torch.tensor([1.0, 2.0]), torch.zeros(2)

    def work() -> None:
        scaled = given * 3
        scaled[1:].add_(1)
        torch.add(scaled, scaled.reshape(2, 1)[:, 0], out=out)

    replay = record(work)
    replay()
    assert out.tolist() == [6.0, 14.0], "the recording is the first replay"
    given.copy_(torch.tensor([5.0, 7.0]))
    replay()
    assert out.tolist() == [30.0, 44.0]


def test_a_number_of_the_host_stays_what_it_was() -> None:
    given, out = torch.tensor([1.0, 2.0]), torch.zeros(2)

    def work() -> None:
        out.copy_(given * given.tolist()[0])

    replay = record(work)
    replay()
    given.copy_(torch.tensor([5.0, 7.0]))
    replay()
    assert out.tolist() == [5.0, 7.0]


def test_memory_that_nobody_writes_is_poison() -> None:
    out = torch.zeros(2)

    def work() -> None:
        out.copy_(torch.empty(2))

    replay = record(work)
    replay()
    replay()
    assert out.isnan().all()


def test_reading_a_value_while_recording_fails() -> None:
    given = torch.tensor([1.0])

    def work() -> None:
        given.mul_(given.item())

    with pytest.raises(HostRead):
        record(work)
