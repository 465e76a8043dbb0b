"""The engine: submit, abort and step, all on one thread. Owns scheduler, blocks, residency and the runner.

A step expires deadlines, moves adapters on, asks the scheduler for a plan, runs it, and returns what came out. Whatever
goes wrong with a sequence becomes its last output, a typed `Failure`, in the next step's result: `submit` never raises
for bad input. A runner that raises ends the sequences of that step and nothing else; `DeviceLost` alone passes through.
Each sequence ends exactly once, by output or by abort, and holds nothing from then on.

With a runner that runs ahead (`batch.RunsAhead`) the device has the next step before the host has read the last one:

    step():  plan and launch n + 1 ── read n, end what ended ──> next          the device: n ──── n + 1 ───

The plan then rests on tokens that nobody knows (PENDING). A sequence of which n turns out to have been the end has one
row too many in n + 1, which is not looked at. Blocks and slots that it gave back are used again by later steps only,
behind n + 1 in the device's queue. Where the next step depends on the host's word (a grammar, penalties) or may have
to take blocks from a running sequence, n is read first.
"""

import itertools
import logging
import random
import secrets
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import NamedTuple

from runtime.adapter import MAX_LEASES, Loads, Way
from runtime.admission import QueueSpeed, unacceptable
from runtime.batch import BASE_SLOT, Batch, Flight, KeepsGraphs, Row, Runner, RunsAhead, Sampled, Scored
from runtime.blocks import BlockPool
from runtime.ending import ending, grammar_failure
from runtime.errors import DeviceLost, DuplicateId, GrammarStuck, LogitsInvalid, RunnerMisused
from runtime.grammars.constraint import Constraint
from runtime.pace import StepPace
from runtime.prefix_cache import PrefixCache
from runtime.protocol import (
    AdapterStatus,
    Failure,
    FinishReason,
    ModelInfo,
    SequenceOutput,
    Stats,
    Submit,
    TierReport,
    TokenScore,
)
from runtime.residency import Residency
from runtime.scheduler import Scheduled, Scheduler
from runtime.sequence import Sequence, State
from runtime.slots import SlotPool
from runtime.waiting import QueueFull
from storage.packed import Packed
from storage.records import Struct
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


class Output(Struct, frozen=True, gc=False):
    """An output and the connection it belongs to."""

    owner: int
    output: SequenceOutput


@dataclass(frozen=True, slots=True)
class StepResult:
    """What a step brought. `progressed` is False when the next step can do nothing either, until something arrives.

    only_copies: nothing but copies beside the steps is under way, so that looking again at once is no use.
    """

    outputs: tuple[Output, ...]
    statuses: tuple[AdapterStatus, ...]
    progressed: bool
    only_copies: bool = False


class _UnderWay(NamedTuple):
    """A step that was launched. ends: of each row, the position after its last one."""

    plan: list[Scheduled]
    rows: tuple[Row, ...]
    ends: list[int]
    flight: Flight
    began: float


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
        self._runner, self._model, self._clock, self._random_seed = runner, model, clock, random_seed
        self._ahead = runner if isinstance(runner, RunsAhead) else None
        self._graphs = runner.graphs if isinstance(runner, KeepsGraphs) else None
        self._under_way: _UnderWay | None = None
        self._landed_at = 0.0
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
        self._pace = StepPace(limits.step_tokens, limits.step_target_s)
        self._live: dict[tuple[int, int], Sequence] = {}
        self._numbers = itertools.count(1)
        self._outputs: list[Output] = []
        self._speed = QueueSpeed()
        self._num_steps = self._num_generated = self._num_refused = 0

    def submit(
        self, owner: int, request: Submit, constraint: Constraint | None = None, arrived_at: float | None = None
    ) -> None:
        """Takes a sequence of a connection. A refusal is its only output, in the next step's result.

        constraint: what its grammar compiled to. arrived_at: by the engine's clock, if that was before now.

        Raises DuplicateId when the connection has a live sequence of this id.
        """
        if (owner, request.sequence_id) in self._live:
            raise DuplicateId(f"sequence {request.sequence_id} is still running")
        failure = unacceptable(request, self._model, self._scheduler.fits, self._residency.too_large)
        if failure is not None:
            self._refuse(owner, request, failure)
            return
        if request.only_if_free and self._scheduler.would_wait(len(request.token_ids)):
            self._refuse(owner, request, self._speed.overloaded(self._scheduler.num_waiting))
            return
        now = self._clock()
        seed = self._random_seed() if request.sampling.seed is None else request.sampling.seed
        arrived_at = now if arrived_at is None else arrived_at
        sequence = Sequence.of(next(self._numbers), owner, request, seed & (2**63 - 1), constraint, arrived_at)
        try:
            displaced = self._scheduler.add(sequence)
        except QueueFull:
            self._refuse(owner, request, self._speed.overloaded(self._scheduler.num_waiting))
            return
        self._live[owner, request.sequence_id] = sequence
        if displaced is not None:
            self._num_refused += 1
            self._end(displaced, "error", self._speed.overloaded(self._scheduler.num_waiting), now)
        if request.adapter is not None:
            if self._residency.asked(request.adapter.digest):
                sequence.state, sequence.adapter_ready_at, sequence.adapter_source = State.WAITING, now, "device"
            self._residency.want(request.adapter)

    def abort(self, owner: int, sequence_id: int) -> None:
        """Ends a sequence without output; unknown ids are ignored."""
        key = (owner, sequence_id)
        if (sequence := self._live.pop(key, None)) is not None:
            self._leave(sequence)
        self._outputs = [item for item in self._outputs if (item.owner, item.output.sequence_id) != key]

    def abort_owner(self, owner: int) -> int:
        """Ends every sequence of a connection that closed; returns how many there were."""
        mine = [key for key in self._live if key[0] == owner]
        for key in mine:
            self._leave(self._live.pop(key))
        self._outputs = [item for item in self._outputs if item.owner != owner]
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
        return len(self._live)

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
            steps=self._num_steps,
            generated_tokens=self._num_generated,
            evictions=self._residency.num_evictions,
            preemptions=self._scheduler.num_preemptions,
            refused=self._num_refused,
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
        for sequence in self._scheduler.expired(now):
            self._end(sequence, "error", Failure("timeout", "the deadline passed"), now)
        for digest, failure in self._residency.advance(self._scheduler):
            self._fail_waiting(digest, failure)
        statuses = self._news(self._clock())
        if self._under_way is not None and (self._waits_for_host(self._under_way) or self._scheduler.may_preempt()):
            self._land(self._under_way)
        plan = self._scheduler.plan(self._clock(), self._pace.budget)
        if self._ahead is None:
            if plan:
                self._execute(plan)
        else:
            launched = self._launch(self._ahead, plan)
            if self._under_way is not None:
                self._land(self._under_way)
            self._under_way = launched
        statuses += self._news(self._clock())
        outputs, self._outputs = tuple(self._outputs), []
        busy, copying = bool(plan or outputs or statuses or self._under_way), self._residency.copying
        return StepResult(outputs, tuple(statuses), busy or copying, copying and not busy and self._residency.beside)

    def _launch(self, runner: RunsAhead, plan: list[Scheduled]) -> _UnderWay | None:
        """Starts the plan, without the sequences that can say nothing more; None when nothing was started."""
        while plan:
            rows = tuple(item.row() for item in plan)
            began = self._clock()
            try:
                flight = runner.launch(Batch(rows))
            except DeviceLost:
                raise
            except GrammarStuck as error:
                plan = self._without_stuck(plan, error)
            except Exception:
                self._fail_step(plan)
                return None
            else:
                for item in plan:
                    self._scheduler.launched(item)
                return _UnderWay(plan, rows, [item.sequence.num_computed for item in plan], flight, began)
        return None

    def _land(self, step: _UnderWay) -> None:
        """Waits for a launched step; what ended since it was launched is not looked at."""
        self._under_way = None
        assert self._ahead is not None
        try:
            tokens = self._ahead.finish(step.flight)
            if len(tokens) != sum(row.samples for row in step.rows):
                raise RunnerMisused(f"{len(tokens)} tokens from {sum(row.samples for row in step.rows)} sampling rows")
        except DeviceLost:
            raise
        except Exception:
            self._fail_step([item for item in step.plan if item.sequence.state is not State.FINISHED])
            return
        now = self._clock()
        self._pace.took(sum(item.num_tokens for item in step.plan), now - max(step.began, self._landed_at))
        self._landed_at = now
        self._num_steps += 1
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
        self._num_generated += len(said)
        self._scheduler.served([item for item, _ in said])
        for item, found in said:
            self._deliver(item.sequence, found, now)
        if broken:
            logger.warning("logits that are not finite in sequences %s", [item.sequence.number for item in broken])
            self._break(broken)

    def _waits_for_host(self, step: _UnderWay) -> bool:
        """Whether a row of the step says something that the host must know before the sequence can go on."""
        return any(
            row.samples and (row.constraint is not None or row.sampling.has_penalties)
            for item, row in zip(step.plan, step.rows, strict=True)
            if item.sequence.state is not State.FINISHED
        )

    def _execute(self, plan: list[Scheduled]) -> None:
        """Runs the plan; sequences whose own numbers overflow end, and the step is repeated without them."""
        while plan:
            rows = tuple(item.row() for item in plan)
            began = self._clock()
            try:
                tokens = self._runner.execute(Batch(rows))
                if len(tokens) != sum(row.samples for row in rows):
                    raise RunnerMisused(f"{len(tokens)} tokens from {sum(row.samples for row in rows)} sampling rows")
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
                self._fail_step(plan)
                return
            else:
                self._pace.took(sum(item.num_tokens for item in plan), self._clock() - began)
                self._computed(plan, rows, tokens)
                return

    def _fail_step(self, plan: list[Scheduled]) -> None:
        """Called while the exception is handled."""
        logger.exception("a step with %d rows failed", len(plan))
        now = self._clock()
        for item in plan:
            self._scheduler.distrust(item.sequence)
            self._end(item.sequence, "error", Failure("internal", "the runtime failed in this step"), now)

    def _without_stuck(self, plan: list[Scheduled], error: GrammarStuck) -> list[Scheduled]:
        now = self._clock()
        stuck = [item for item in plan if item.sequence.number in error.reasons] or plan
        for item in stuck:
            reason = error.reasons.get(item.sequence.number, str(error))
            self._end(item.sequence, "error", grammar_failure(reason), now)
        return [item for item in plan if item not in stuck]

    def _break(self, broken: list[Scheduled]) -> None:
        now = self._clock()
        for item in broken:
            if item.sequence.adapter is None:
                failure = Failure("internal", "the model computed numbers that are not finite")
            else:
                failure = Failure("adapter_corrupt", "with this adapter the model computes numbers that are not finite")
            self._scheduler.distrust(item.sequence)
            self._end(item.sequence, "error", failure, now)

    def _computed(self, plan: list[Scheduled], rows: tuple[Row, ...], tokens: Collection[Sampled]) -> None:
        now = self._clock()
        self._num_steps += 1
        adapters = len({row.slot for row in rows} - {BASE_SLOT})
        accounts = len({item.sequence.account_id for item in plan})
        self._num_generated += len(tokens)
        self._scheduler.served([item for item, row in zip(plan, rows, strict=True) if row.samples])
        sampled = iter(tokens)
        for item, row in zip(plan, rows, strict=True):
            item.sequence.joined(len(rows), adapters, accounts)
            if not row.samples:
                self._scheduler.computed(item, None)
                continue
            found = next(sampled)
            self._scheduler.computed(item, found if isinstance(found, int) else found.token_id)
            self._deliver(item.sequence, found, now)

    def _deliver(self, sequence: Sequence, found: Sampled, now: float) -> None:
        token: int
        scores: tuple[TokenScore, ...]
        token, scores = (found, ()) if isinstance(found, int) else (found.token_id, (found.score,))
        if sequence.first_token_at is None:
            sequence.first_token_at = now
        reason, shown, failure = ending(sequence, token, self._model.eos_token_ids)
        token_ids, scores = ((token,), scores) if shown else ((), ())
        if reason is not None:
            self._end(sequence, reason, failure, now, token_ids, scores)
        else:
            said = SequenceOutput(sequence.sequence_id, token_ids, scores=scores)
            self._outputs.append(Output(sequence.owner, said))

    def _end(
        self,
        sequence: Sequence,
        reason: FinishReason,
        failure: Failure | None,
        now: float,
        token_ids: tuple[int, ...] = (),
        scores: tuple[TokenScore, ...] = (),
    ) -> None:
        """The sequence's last output; everything it holds is free afterwards."""
        self._scheduler.finish(sequence)
        del self._live[sequence.owner, sequence.sequence_id]
        if failure is None:
            self._speed.finished(now)
        output = SequenceOutput(
            sequence_id=sequence.sequence_id,
            token_ids=token_ids,
            finish_reason=reason,
            failure=failure,
            prompt_tokens=sequence.prompt_tokens,
            completion_tokens=sequence.num_generated,
            cached_tokens=sequence.cached_tokens,
            timing=sequence.timing(now),
            scores=scores,
        )
        self._outputs.append(Output(sequence.owner, output))

    def _fail_waiting(self, digest: str, failure: Failure) -> None:
        now = self._clock()
        for sequence in self._scheduler.waiting_with(digest):
            self._end(sequence, "error", failure, now)

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

    def _refuse(self, owner: int, request: Submit, failure: Failure) -> None:
        self._num_refused += 1
        output = SequenceOutput(
            sequence_id=request.sequence_id,
            finish_reason="error",
            failure=failure,
            prompt_tokens=len(request.token_ids),
        )
        self._outputs.append(Output(owner, output))
