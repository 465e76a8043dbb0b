"""How a sequence ends with a token: end tokens, stop tokens, the length, a complete or an impossible grammar."""

from collections.abc import Sequence as Listed
from dataclasses import dataclass, field
from typing import Any

import msgspec
import pytest

from runtime.batch import Batch
from runtime.ending import Ending, ending
from runtime.errors import GrammarStuck
from runtime.protocol import Failure, SamplingParams
from runtime.sequence import Sequence
from tests.runtime.fakes import EOS, FakeRunner, submit
from tests.runtime.rig import Rig


@dataclass
class Counted:
    """Complete after so many tokens; some it cannot take."""

    length: int = 99
    impossible: frozenset[int] = frozenset()
    problem: str | None = None
    taken: list[int] = field(default_factory=list)

    @property
    def done(self) -> bool:
        return self.problem is None and len(self.taken) >= self.length

    def take(self, token: int) -> None:
        self.taken.append(token)
        if token in self.impossible:
            self.problem = "it cannot be"


def sequence(constraint: Counted | None, **sampling: Any) -> Sequence:
    wanted = SamplingParams(**{"max_tokens": 3, **sampling})
    return Sequence(1, 1, 1, "a", None, wanted, 0, [1, 2, 5], 2, 0.0, 9.0, constraint=constraint)


@pytest.mark.parametrize(
    ("constraint", "sampling", "token", "expected"),
    [
        (None, {}, 5, (None, True)),
        (None, {}, EOS, ("stop", False)),
        (None, {"ignore_eos": True}, EOS, (None, True)),
        (None, {"stop_token_ids": (5,)}, 5, ("stop", False)),
        (None, {"max_tokens": 1}, 5, ("length", True)),
        (Counted(), {}, 5, (None, True)),
        (Counted(1), {}, 5, ("stop", True)),
        (Counted(1), {"max_tokens": 1}, 5, ("stop", True)),
        (Counted(), {"max_tokens": 1}, 5, ("length", True)),
        (Counted(1), {}, EOS, ("stop", False)),
        (Counted(), {"ignore_eos": True}, EOS, ("stop", False)),
        (Counted(), {"stop_token_ids": (5,)}, 5, ("stop", False)),
        (Counted(impossible=frozenset({5})), {}, 5, ("error", False, Failure("grammar", "it cannot be"))),
        (Counted(impossible=frozenset({EOS})), {}, EOS, ("error", False, Failure("grammar", "it cannot be"))),
    ],
)
def test_ends(constraint: Counted | None, sampling: dict[str, Any], token: int, expected: tuple[Any, ...]) -> None:
    assert ending(sequence(constraint, **sampling), token, (EOS,)) == Ending(*expected)
    assert constraint is None or constraint.taken == [token]


def test_the_engine_tells_the_constraint_each_token_once_over_preemptions() -> None:
    rig = Rig(num_blocks=9)
    constraints = {number: Counted() for number in range(1, 5)}
    for number, constraint in constraints.items():
        rig.engine.submit(1, submit(number, max_tokens=12), constraint)
    rig.run()
    assert rig.engine.stats().preemptions > 0
    for number, constraint in constraints.items():
        assert constraint.taken == rig.tokens(number)
        assert len(constraint.taken) == 12


def test_stuck_rows_end_and_the_others_do_not_notice() -> None:
    class Stuck(FakeRunner):
        def execute(self, batch: Batch) -> Listed[int]:  # type: ignore[override]
            reasons = {row.sequence_id: "no way on" for row in batch.rows if row.constraint is not None}
            if reasons:
                raise GrammarStuck(reasons)
            return super().execute(batch)

    rig = Rig()
    alone = Rig()
    alone.submit(submit(1))
    alone.run()
    runner = Stuck()
    runner.account_of = rig.account_of
    rig.use(runner)
    rig.submit(submit(1))
    rig.engine.submit(1, submit(2), Counted())
    rig.engine.submit(1, submit(3), Counted())
    rig.run()
    assert rig.tokens(1) == alone.tokens(1)
    for number in (2, 3):
        assert rig.last(number).failure == Failure("grammar", "no way on")
        assert rig.tokens(number) == []


def test_an_arrival_in_the_past_counts_against_the_deadline() -> None:
    rig = Rig()
    request = msgspec.structs.replace(submit(1), timeout_s=5.0)
    rig.engine.submit(1, request, None, rig.clock.now - 6.0)
    rig.step()
    failure = rig.last(1).failure
    assert failure is not None
    assert failure.kind == "timeout"
