"""The engine: submit, abort and step, all on one thread. Owns scheduler, blocks, residency and the runner.

A step expires deadlines, moves adapters on, asks the scheduler for a plan, runs it (`steps.py`, or `steps_ahead.py`
where the device works while the host plans), and returns what came out (`answers.py`). Whatever goes wrong with a
sequence becomes its last output, a typed `Failure`, in the next step's result: `submit` never raises for bad input.
Each sequence ends exactly once, by output or by abort, and holds nothing from then on.
"""

import itertools
import logging
import random
import secrets
from collections.abc import Callable
from dataclasses import dataclass

from runtime.adapter import MAX_LEASES, Loads, Way
from runtime.admission import unacceptable
from runtime.answers import Answers, Output
from runtime.batch import KeepsGraphs, Runner, RunsAhead
from runtime.blocks import BlockPool
from runtime.errors import DuplicateId
from runtime.grammars.constraint import Constraint
from runtime.pace import StepPace
from runtime.prefix_cache import PrefixCache
from runtime.protocol import (
    AdapterStatus,
    Failure,
    ModelInfo,
    Stats,
    Submit,
    TierReport,
)
from runtime.residency import Residency
from runtime.scheduler import Scheduler
from runtime.sequence import Sequence, State
from runtime.slots import SlotPool
from runtime.steps import StepsInTurn
from runtime.steps_ahead import StepsAhead
from runtime.waiting import QueueFull
from storage.packed import Packed
from storage.tier_records import LoadTimes

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class EngineLimits:
    """Sizes of the engine; see `RuntimeConfig` for what they mean."""

    num_blocks: int
    block_tokens: int
    adapter_rows: int
    max_running: int = 64
    max_waiting: int = 256
    step_tokens: int = 1024
    copy_bytes: int = 16 * 1024**2
    starve_after_s: float = 2.0
    max_leases: int = MAX_LEASES
    step_target_s: float = 0.5
    prefix_cache: bool = True


@dataclass(frozen=True, slots=True)
class StepResult:
    """What a step brought. `progressed` is False when the next step can do nothing either, until something arrives.

    only_copies: nothing but copies beside the steps is under way, so that looking again at once is no use.
    """

    outputs: tuple[Output, ...]
    statuses: tuple[AdapterStatus, ...]
    progressed: bool
    only_copies: bool = False


class Engine:
    """`clock` gives seconds, monotonic; `random_seed` makes the seed of a request that names none."""

    def __init__(
        self,
        runner: Runner,
        model: ModelInfo,
        limits: EngineLimits,
        loads: Loads,
        clock: Callable[[], float],
        random_seed: Callable[[], int] = lambda: random.getrandbits(63),
    ) -> None:
        self._model, self._clock, self._random_seed = model, clock, random_seed
        self._graphs = runner.graphs if isinstance(runner, KeepsGraphs) else None
        self._blocks = BlockPool(limits.num_blocks, limits.block_tokens)
        self._rows = SlotPool(limits.adapter_rows)
        self._residency = Residency(
            self._rows,
            runner,
            loads,
            clock,
            max_leases=limits.max_leases,
            copy_bytes=limits.copy_bytes,
            starve_after_s=limits.starve_after_s,
        )
        self._prefixes = PrefixCache(self._blocks, secrets.token_bytes(32) if limits.prefix_cache else None)
        self._scheduler = Scheduler(
            self._blocks,
            self._prefixes,
            self._residency,
            max_running=limits.max_running,
            max_waiting=limits.max_waiting,
            step_tokens=limits.step_tokens,
        )
        self._numbers = itertools.count(1)
        self._answers = Answers(self._scheduler, model.eos_token_ids)
        pace = StepPace(limits.step_tokens, limits.step_target_s)
        self._steps = (
            StepsAhead(runner, self._scheduler, self._answers, pace, clock)
            if isinstance(runner, RunsAhead)
            else StepsInTurn(runner, self._scheduler, self._answers, pace, clock)
        )

    def submit(
        self, owner: int, request: Submit, constraint: Constraint | None = None, arrived_at: float | None = None
    ) -> None:
        """Takes a sequence of a connection. A refusal is its only output, in the next step's result.

        constraint: what its grammar compiled to. arrived_at: by the engine's clock, if that was before now.

        Raises DuplicateId when the connection has a live sequence of this id.
        """
        if (owner, request.sequence_id) in self._answers.live:
            raise DuplicateId(f"sequence {request.sequence_id} is still running")
        failure = unacceptable(request, self._model, self._scheduler.fits, self._residency.too_large)
        if failure is not None:
            self._answers.refuse(owner, request, failure)
            return
        if request.only_if_free and self._scheduler.would_wait(len(request.token_ids)):
            self._answers.refuse(owner, request, self._answers.overloaded())
            return
        now = self._clock()
        seed = self._random_seed() if request.sampling.seed is None else request.sampling.seed
        arrived_at = now if arrived_at is None else arrived_at
        sequence = Sequence.of(next(self._numbers), owner, request, seed & (2**63 - 1), constraint, arrived_at)
        try:
            displaced = self._scheduler.add(sequence)
        except QueueFull:
            self._answers.refuse(owner, request, self._answers.overloaded())
            return
        self._answers.live[owner, request.sequence_id] = sequence
        if displaced is not None:
            self._answers.displace(displaced, now)
        if request.adapter is not None:
            if self._residency.asked(request.adapter.digest):
                sequence.state, sequence.adapter_ready_at, sequence.adapter_source = State.WAITING, now, "device"
            self._residency.want(request.adapter)

    def abort(self, owner: int, sequence_id: int) -> None:
        """Ends a sequence without output; unknown ids are ignored."""
        if (sequence := self._answers.leave(owner, sequence_id)) is not None:
            self._leave(sequence)

    def abort_owner(self, owner: int) -> int:
        """Ends every sequence of a connection that closed; returns how many there were."""
        mine = self._answers.leave_all(owner)
        for sequence in mine:
            self._leave(sequence)
        return len(mine)

    def _leave(self, sequence: Sequence) -> None:
        """Its caller has gone. (One whose deadline has passed is asked again, and finds what it waited for.)"""
        self._scheduler.finish(sequence)
        if sequence.digest is not None and not self._scheduler.has_adapter(sequence.digest):
            self._residency.abandoned(sequence.digest)

    def adapter_loaded(self, digest: str, packed: Packed, way: Way) -> None:
        """The loader's answer to `Loads.start`: the bytes are leased to the engine."""
        failure = self._residency.loaded(digest, packed, way)
        if failure is not None:
            self._fail_waiting(digest, failure)

    def adapter_failed(self, digest: str, failure: Failure) -> None:
        """The loader's other answer to `Loads.start`."""
        self._residency.failed(digest, failure)
        self._fail_waiting(digest, failure)

    def adapter_stopped(self, digest: str) -> None:
        """The loader's answer to `Loads.stop`."""
        self._residency.stopped(digest)

    def adapter_warmed(self, digest: str, way: Way) -> None:
        """The loader's answer to `Loads.warm`."""
        self._residency.warmed(digest, way)

    def forget_adapter(self, digest: str) -> None:
        """A finetune was deleted: its adapter leaves every tier once nothing uses it."""
        self._residency.forget(digest)

    def adapters(self) -> list[AdapterStatus]:
        """What is on the device now."""
        return self._residency.residents()

    def device_report(self) -> tuple[TierReport, LoadTimes, frozenset[str]]:
        """The device as a tier, the times of copies to it, and the adapters that are there."""
        return *self._residency.report(), frozenset(status.digest for status in self.adapters())

    @property
    def num_live(self) -> int:
        """Sequences that have not ended."""
        return len(self._answers.live)

    @property
    def next_deadline(self) -> float | None:
        """When a step is due even if nothing arrives."""
        return self._scheduler.next_deadline

    def stats(self) -> Stats:
        """Load figures."""
        graphs = self._graphs.report if self._graphs is not None else None
        return Stats(
            running=self._scheduler.num_running,
            waiting=self._scheduler.num_waiting,
            waiting_for_adapter=self._scheduler.num_waiting_for_adapter,
            free_blocks=self._blocks.num_free,
            total_blocks=self._blocks.num_blocks,
            adapters_resident=self._residency.num_resident,
            adapter_rows_used=self._rows.rows_used,
            adapter_rows_total=self._rows.num_rows,
            steps=self._steps.num_steps,
            generated_tokens=self._steps.num_generated,
            evictions=self._residency.num_evictions,
            preemptions=self._scheduler.num_preemptions,
            refused=self._answers.num_refused,
            cached_blocks=self._blocks.num_cached,
            prefix_hit_tokens=self._prefixes.num_hit_tokens,
            prefix_prompt_tokens=self._prefixes.num_prompt_tokens,
            graph_captures=graphs.captures if graphs else 0,
            graph_capture_s=graphs.capture_s if graphs else 0.0,
            graphs_failed=graphs.failed if graphs else 0,
        )

    def step(self) -> StepResult:
        """One step. Raises DeviceLost when the device is gone."""
        now = self._clock()
        self._answers.fail(self._scheduler.expired(now), Failure("timeout", "the deadline passed"), now)
        for digest, failure in self._residency.advance(self._scheduler):
            self._fail_waiting(digest, failure)
        statuses = self._news(self._clock())
        self._steps.settle()
        plan = self._scheduler.plan(self._clock(), self._steps.pace.budget)
        self._steps.run(plan)
        statuses += self._news(self._clock())
        outputs = self._answers.take()
        busy, copying = bool(plan or outputs or statuses or self._steps.under_way), self._residency.copying
        return StepResult(outputs, tuple(statuses), busy or copying, copying and not busy and self._residency.beside)

    def _fail_waiting(self, digest: str, failure: Failure) -> None:
        self._answers.fail(self._scheduler.waiting_with(digest), failure, self._clock())

    def _news(self, now: float) -> list[AdapterStatus]:
        """Tells the waiting sequences what happened to their adapters, and returns it."""
        news = self._residency.take_news()
        for status in news:
            if status.resident == "device":
                source = self._residency.source(status.digest)
                for sequence in self._scheduler.adapter_arrived(status.digest, now):
                    sequence.adapter_source = sequence.adapter_source or source
            else:
                self._scheduler.adapter_left(status.digest)
        return news
