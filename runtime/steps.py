"""Plans, run on the device one by one, and what becomes of them.

A runner that raises ends the sequences of that step and nothing else; `DeviceLost` alone passes through. Where a runner
says which sequences it cannot go on with (logits that are not finite, a grammar that is stuck), only those end.
"""

import logging
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection

from runtime.answers import Answers
from runtime.batch import BASE_SLOT, Batch, Row, Runner, Sampled
from runtime.ending import grammar_failure
from runtime.errors import DeviceLost, GrammarStuck, LogitsInvalid, RunnerMisused
from runtime.pace import StepPace
from runtime.protocol import Failure
from runtime.scheduler import Scheduled, Scheduler

logger = logging.getLogger(__name__)


class Steps(ABC):
    """What every way of running plans has. `clock` gives seconds, monotonic. `pace` says how many tokens the next plan
    may have.
    """

    def __init__(self, scheduler: Scheduler, answers: Answers, pace: StepPace, clock: Callable[[], float]) -> None:
        self._scheduler, self._answers, self.pace, self._clock = scheduler, answers, pace, clock
        self.num_steps = self.num_generated = 0

    @property
    @abstractmethod
    def under_way(self) -> bool:
        """Whether the device works on a step of which nothing was read yet."""

    @abstractmethod
    def settle(self) -> None:
        """Reads what the next plan cannot be made without."""

    @abstractmethod
    def run(self, plan: list[Scheduled]) -> None:
        """Runs the plan, which may be empty. Raises DeviceLost."""

    def _fail(self, plan: list[Scheduled]) -> None:
        """Called while the exception is handled."""
        logger.exception("a step with %d rows failed", len(plan))
        now = self._clock()
        for item in plan:
            self._scheduler.distrust(item.sequence)
            self._answers.end(item.sequence, "error", Failure("internal", "the runtime failed in this step"), now)

    def _without_stuck(self, plan: list[Scheduled], error: GrammarStuck) -> list[Scheduled]:
        now = self._clock()
        stuck = [item for item in plan if item.sequence.number in error.reasons] or plan
        for item in stuck:
            reason = error.reasons.get(item.sequence.number, str(error))
            self._answers.end(item.sequence, "error", grammar_failure(reason), now)
        return [item for item in plan if item not in stuck]

    def _break(self, broken: list[Scheduled]) -> None:
        now = self._clock()
        for item in broken:
            if item.sequence.adapter is None:
                failure = Failure("internal", "the model computed numbers that are not finite")
            else:
                failure = Failure("adapter_corrupt", "with this adapter the model computes numbers that are not finite")
            self._scheduler.distrust(item.sequence)
            self._answers.end(item.sequence, "error", failure, now)


class StepsInTurn(Steps):
    """The host waits for each step."""

    def __init__(
        self, runner: Runner, scheduler: Scheduler, answers: Answers, pace: StepPace, clock: Callable[[], float]
    ) -> None:
        super().__init__(scheduler, answers, pace, clock)
        self.runner = runner

    @property
    def under_way(self) -> bool:
        """Never: every step was read when it was run."""
        return False

    def settle(self) -> None:
        """Nothing is left to read."""

    def run(self, plan: list[Scheduled]) -> None:
        """Runs the plan; sequences whose own numbers overflow end, and the step is repeated without them."""
        while plan:
            rows = tuple(item.row() for item in plan)
            began = self._clock()
            try:
                tokens = self.runner.execute(Batch(rows))
                check_count(tokens, rows)
            except DeviceLost:
                raise
            except GrammarStuck as error:
                plan = self._without_stuck(plan, error)
            except LogitsInvalid as error:
                logger.warning("%s", error)
                broken = [item for item in plan if item.sequence.number in error.sequence_ids] or plan
                plan = [item for item in plan if item not in broken]
                self._break(broken)
            except Exception:
                self._fail(plan)
                return
            else:
                self.pace.took(sum(item.num_tokens for item in plan), self._clock() - began)
                self._computed(plan, rows, tokens)
                return

    def _computed(self, plan: list[Scheduled], rows: tuple[Row, ...], tokens: Collection[Sampled]) -> None:
        now = self._clock()
        self.num_steps += 1
        adapters = len({row.slot for row in rows} - {BASE_SLOT})
        accounts = len({item.sequence.account_id for item in plan})
        self.num_generated += len(tokens)
        scheduler, deliver = self._scheduler, self._answers.deliver
        scheduler.served([item for item, row in zip(plan, rows, strict=True) if row.samples])
        sampled = iter(tokens)
        for item, row in zip(plan, rows, strict=True):
            item.sequence.joined(len(rows), adapters, accounts)
            if not row.samples:
                scheduler.computed(item, None)
                continue
            found = next(sampled)
            scheduler.computed(item, found if isinstance(found, int) else found.token_id)
            deliver(item.sequence, found, now)


def check_count(tokens: Collection[object], rows: tuple[Row, ...]) -> None:
    """A token of each row that samples. Raises RunnerMisused."""
    wanted = sum(row.samples for row in rows)
    if len(tokens) != wanted:
        raise RunnerMisused(f"{len(tokens)} tokens from {wanted} sampling rows")
