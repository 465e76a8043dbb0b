"""Plans on a device that runs ahead (`batch.RunsAhead`): it has the next step before the host has read the last one.

    run():  launch n + 1 ── read n, end what ended ──> next          the device: n ──── n + 1 ───

A plan then rests on tokens that nobody knows (PENDING). A sequence of which n turns out to have been the end has one
row too many in n + 1, which is not looked at. Blocks and slots that it gave back are used again by later steps only,
behind n + 1 in the device's queue. Where the next step depends on the host's word (a grammar, penalties) or may have
to take blocks from a running sequence, n is read first.
"""

import logging
from collections.abc import Callable
from typing import NamedTuple

from runtime.answers import Answers
from runtime.batch import BASE_SLOT, Batch, Flight, Row, RunsAhead, Sampled, Scored
from runtime.errors import DeviceLost, GrammarStuck
from runtime.pace import StepPace
from runtime.scheduler import Scheduled, Scheduler
from runtime.sequence import State
from runtime.steps import Steps, check_count

logger = logging.getLogger(__name__)


class _UnderWay(NamedTuple):
    """A step that was launched. ends: of each row, the position after its last one."""

    plan: list[Scheduled]
    rows: tuple[Row, ...]
    ends: list[int]
    flight: Flight
    began: float


class StepsAhead(Steps):
    """At most one step is launched and not read when a call returns."""

    def __init__(
        self, runner: RunsAhead, scheduler: Scheduler, answers: Answers, pace: StepPace, clock: Callable[[], float]
    ) -> None:
        super().__init__(scheduler, answers, pace, clock)
        self._runner = runner
        self._step: _UnderWay | None = None
        self._landed_at = 0.0

    @property
    def under_way(self) -> bool:
        """Whether the device works on a step of which nothing was read yet."""
        return self._step is not None

    def settle(self) -> None:
        """Reads the last step where the next one depends on it."""
        if self._step is not None and (_waits_for_host(self._step) or self._scheduler.may_preempt()):
            self._land(self._step)

    def run(self, plan: list[Scheduled]) -> None:
        """Launches the plan, and reads the step before it."""
        launched = self._launch(plan)
        if self._step is not None:
            self._land(self._step)
        self._step = launched

    def _launch(self, plan: list[Scheduled]) -> _UnderWay | None:
        """Starts the plan, without the sequences that can say nothing more; None when nothing was started."""
        while plan:
            rows = tuple(item.row() for item in plan)
            began = self._clock()
            try:
                flight = self._runner.launch(Batch(rows))
            except DeviceLost:
                raise
            except GrammarStuck as error:
                plan = self._without_stuck(plan, error)
            except Exception:
                self._fail(plan)
                return None
            else:
                for item in plan:
                    self._scheduler.launched(item)
                return _UnderWay(plan, rows, [item.sequence.num_computed for item in plan], flight, began)
        return None

    def _land(self, step: _UnderWay) -> None:
        """Waits for a launched step; what ended since it was launched is not looked at."""
        self._step = None
        try:
            tokens = self._runner.finish(step.flight)
            check_count(tokens, step.rows)
        except DeviceLost:
            raise
        except Exception:
            self._fail([item for item in step.plan if item.sequence.state is not State.FINISHED])
            return
        now = self._clock()
        self.pace.took(sum(item.num_tokens for item in step.plan), now - max(step.began, self._landed_at))
        self._landed_at = now
        self.num_steps += 1
        adapters = len({row.slot for row in step.rows} - {BASE_SLOT})
        accounts = len({item.sequence.account_id for item in step.plan})
        sampled, said, broken = iter(tokens), list[tuple[Scheduled, Sampled]](), list[Scheduled]()
        for item, row, end in zip(step.plan, step.rows, step.ends, strict=True):
            found = next(sampled) if row.samples else None
            if item.sequence.state is State.FINISHED:
                continue
            item.sequence.joined(len(step.rows), adapters, accounts)
            if row.samples and found is None:
                broken.append(item)
                continue
            token = found.token_id if isinstance(found, Scored) else found
            self._scheduler.arrived(item.sequence, end - item.num_tokens, end, token)
            if found is not None:
                said.append((item, found))
        self.num_generated += len(said)
        self._scheduler.served([item for item, _ in said])
        for item, found in said:
            self._answers.deliver(item.sequence, found, now)
        if broken:
            logger.warning("logits that are not finite in sequences %s", [item.sequence.number for item in broken])
            self._break(broken)


def _waits_for_host(step: _UnderWay) -> bool:
    """Whether a row of the step says something that the host must know before the sequence can go on."""
    return any(
        row.samples and (row.constraint is not None or row.sampling.has_penalties)
        for item, row in zip(step.plan, step.rows, strict=True)
        if item.sequence.state is not State.FINISHED
    )
