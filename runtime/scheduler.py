"""Decides, step by step, which sequences compute how many tokens. No torch, no clock: times are passed in.

    submit > WaitingQueue > (blocks free, adapter on the device, turn) > running > finished
                  ^________________(blocks run out: see `running.py`)____|

A step takes, in this order: one token of every decoding sequence, prompts that have begun, new sequences. Prompts are
cut into chunks by what is left of `step_tokens`, or of the device's pace, and begin after the blocks that the prefix
cache has of them. A sequence starts only when the blocks of all its tokens are free, so a prompt that has begun is
never stuck for blocks; decoding ones take a block when they need it, and when none is left the newest seat is given
up. The oldest never is, and alone a sequence always fits (`fits` is asked at arrival), so everything ends. A sequence
at the head that lacks only blocks holds up those behind it, or it would never find enough; one that lacks its adapter
holds up nobody.

No account can keep another out by long answers: while an account that runs nothing has the next turn and finds no
room, the account that runs most for its weight gives one sequence up, one a step, but never its only one.
"""

import heapq
import operator
from collections import Counter
from collections.abc import Iterable
from typing import Final, Protocol

from runtime.batch import BASE_SLOT, PENDING, Row
from runtime.blocks import BlockPool
from runtime.fairness import ANSWER_TOKEN_COST, PROMPT_TOKEN_COST
from runtime.prefix_cache import PrefixCache
from runtime.protocol import AdapterRef
from runtime.running import Running
from runtime.sequence import Sequence, State
from runtime.waiting import WaitingQueue
from storage.records import Struct

LEAST_PROMPT_TOKENS: Final = 8
# Asked of every row of every step.
_PARTY: Final = operator.attrgetter("sequence.party")
_PLACE: Final = operator.attrgetter("sequence.slot", "sequence.number")


class Adapters(Protocol):
    """What the scheduler asks about adapters; `residency.Residency` answers."""

    def admissible(self, digest: str | None) -> bool:
        """True when a sequence with this adapter may start now."""
        ...

    def acquire(self, digest: str | None) -> int:
        """A sequence starts: its slot."""
        ...

    def release(self, digest: str | None) -> None:
        """A sequence gives its slot back."""
        ...


class Scheduled(Struct, frozen=True, gc=False):
    """One sequence of a step, and how many of its tokens are computed."""

    sequence: Sequence
    num_tokens: int

    @property
    def samples(self) -> bool:
        """True when the step reaches the sequence's last token, so that the next one can be sampled."""
        return self.num_tokens == self.sequence.num_uncomputed

    def row(self) -> Row:
        """For the runner."""
        sequence, tokens, start = self.sequence, self.sequence.tokens, self.sequence.num_computed
        end = start + self.num_tokens
        # By place: by name it takes twice as long, and every row of every step is made here.
        return Row(
            sequence.number,
            tokens[start:end],
            start,
            sequence.block_table,
            sequence.slot,
            end == len(tokens),
            sequence.sampling,
            tokens,
            sequence.prompt_tokens,
            sequence.seed,
            sequence.constraint,
        )


class Scheduler:
    """Owns every live sequence, the waiting queue, and who holds which blocks."""

    def __init__(
        self,
        blocks: BlockPool,
        prefixes: PrefixCache,
        adapters: Adapters,
        *,
        max_running: int,
        max_waiting: int,
        step_tokens: int,
    ) -> None:
        self._blocks, self._prefixes, self._adapters = blocks, prefixes, adapters
        # A step must have room for one token of every running sequence.
        self._max_running = min(max_running, step_tokens)
        self._step_tokens = step_tokens
        self._waiting = WaitingQueue(max_waiting)
        self._running = Running()
        self._deadlines: list[tuple[float, int, Sequence]] = []
        self.num_preemptions = 0

    @property
    def num_running(self) -> int:
        """Sequences that hold blocks."""
        return len(self._running)

    @property
    def num_waiting(self) -> int:
        """Sequences that hold nothing."""
        return len(self._waiting)

    @property
    def num_waiting_for_adapter(self) -> int:
        """Those of the waiting whose adapter is not on the device."""
        return sum(sequence.state is State.WAITING_ADAPTER for sequence in self._waiting)

    @property
    def running(self) -> tuple[Sequence, ...]:
        """Oldest seat first."""
        return tuple(self._running)

    def fits(self, num_tokens: int) -> bool:
        """True when a sequence of this final length fits the whole cache; its last token is never written."""
        return self._blocks.needed(num_tokens - 1) <= self._blocks.num_blocks

    def would_wait(self, num_tokens: int) -> bool:
        """True when a prompt of so many tokens, come now, would wait for others to end; for its adapter it may.

        Those who came since the last plan are counted as if they had started, or a burst would find itself all alone.
        """
        ahead = [sequence for sequence in self._waiting if sequence.state is State.WAITING]
        others = self.num_running + len(ahead)
        needed = sum(self._blocks.needed(len(sequence.tokens)) for sequence in ahead) + self._blocks.needed(num_tokens)
        return others >= self._max_running or (others > 0 and needed + others > self._blocks.num_free)

    def add(self, sequence: Sequence) -> Sequence | None:
        """Queues a new sequence; returns the one displaced for it, if any (see `WaitingQueue`). Raises QueueFull."""
        displaced = self._waiting.add(sequence)
        if displaced is not None:
            displaced.state = State.FINISHED
        heapq.heappush(self._deadlines, (sequence.deadline, sequence.number, sequence))
        return displaced

    def finish(self, sequence: Sequence) -> None:
        """Ends a sequence in whatever state it is; blocks and adapter are free at once."""
        if sequence.state is State.FINISHED:
            return
        if sequence.waiting:
            self._waiting.remove(sequence)
        else:
            self._running.remove(sequence)
            self._give_back(sequence)
        sequence.state = State.FINISHED

    def distrust(self, sequence: Sequence) -> None:
        """A step with it failed, so nobody else begins with what it holds; earlier steps may have been wrong too."""
        self._blocks.withdraw(sequence.block_table)

    def expired(self, now: float) -> list[Sequence]:
        """The live sequences whose deadline has passed; the caller finishes them."""
        due = []
        while self._deadlines and (self._deadlines[0][0] <= now or self._deadlines[0][2].state is State.FINISHED):
            sequence = heapq.heappop(self._deadlines)[2]
            if sequence.state is not State.FINISHED:
                due.append(sequence)
        if len(self._deadlines) > 2 * (self.num_running + self.num_waiting) + 64:
            self._deadlines = [entry for entry in self._deadlines if entry[2].state is not State.FINISHED]
            heapq.heapify(self._deadlines)
        return due

    @property
    def next_deadline(self) -> float | None:
        """The earliest deadline that may still matter."""
        return self._deadlines[0][0] if self._deadlines else None

    def plan(self, now: float, pace_tokens: int) -> list[Scheduled]:
        """The next step's sequences, ordered by slot. Empty when nothing can run.

        `pace_tokens` is what the device can compute in good time; however slow it is, prompts go on.
        """
        self._make_way()
        preemptions = self.num_preemptions
        steps = self._decodes()
        budget = min(self._step_tokens - len(steps), max(pace_tokens - len(steps), LEAST_PROMPT_TOKENS))
        for sequence in self._running:
            if sequence.state is State.PREFILL and budget > 0:
                steps.append(Scheduled(sequence, min(sequence.num_uncomputed, budget)))
                budget -= steps[-1].num_tokens
        if preemptions == self.num_preemptions:
            steps += self._admissions(budget, now)
        return sorted(steps, key=_PLACE)

    def computed(self, step: Scheduled, token: int | None) -> None:
        """The step was executed; `token` is what was sampled, None unless `step.samples`."""
        sequence, start = step.sequence, step.sequence.num_computed
        stop = sequence.num_computed = start + step.num_tokens
        if start // self._blocks.block_tokens != stop // self._blocks.block_tokens:  # else nothing new can be found
            self._prefixes.computed(sequence, start, stop)
        if token is not None:
            sequence.tokens.append(token)
            sequence.state = State.DECODE

    def launched(self, step: Scheduled) -> None:
        """The step runs, and will be heard of by `arrived`; the next plan may go on from it."""
        sequence, samples = step.sequence, step.samples
        sequence.num_computed += step.num_tokens
        if samples:
            sequence.tokens.append(PENDING)
            sequence.num_pending += 1
            sequence.state = State.DECODE

    def arrived(self, sequence: Sequence, first: int, end: int, token: int | None) -> None:
        """A launched step has computed positions first .. end - 1; `token` as for `computed`."""
        if token is not None:
            sequence.tokens[end] = token
            sequence.num_pending -= 1
        self._prefixes.computed(sequence, first, end)

    def may_preempt(self) -> bool:
        """Whether the next plan might take blocks from a running sequence: not while a step of it is under way."""
        missing = sum(
            self._blocks.needed(len(sequence.tokens)) - len(sequence.block_table)
            for sequence in self._running
            if sequence.state is State.DECODE and not sequence.all_launched
        )
        return missing > self._blocks.num_free or self._crowding() is not None

    def served(self, steps: Iterable[Scheduled]) -> None:
        """These sequences got a token each; their accounts and adapters are charged, once per step for speed."""
        for (account_id, digest, weight), tokens in Counter(map(_PARTY, steps)).items():
            self._waiting.charge(account_id, digest, ANSWER_TOKEN_COST * tokens, weight)

    def adapter_arrived(self, digest: str, now: float) -> list[Sequence]:
        """The adapter is on the device: those who wait with it, returned, wait for their turn only."""
        waiting = self._waiting.with_adapter(digest)
        for sequence in waiting:
            sequence.state = State.WAITING
            if sequence.adapter_ready_at is None:
                sequence.adapter_ready_at = now
        return waiting

    def adapter_left(self, digest: str) -> None:
        """The adapter is no longer on the device."""
        for sequence in self._waiting.with_adapter(digest):
            sequence.state = State.WAITING_ADAPTER

    def waiting_with(self, digest: str) -> list[Sequence]:
        """Every sequence that waits with this adapter."""
        return self._waiting.with_adapter(digest)

    def adapters_in_turn(self) -> list[AdapterRef]:
        """Adapters that somebody waits for, in the order in which they should come."""
        return self._waiting.adapters_in_turn()

    def has_adapter(self, digest: str) -> bool:
        """True when somebody waits with this adapter."""
        return self._waiting.has_adapter(digest)

    def num_remaining(self, digest: str) -> int:
        """The most tokens that a running sequence with this adapter may still generate."""
        return max((item.num_remaining for item in self._running if item.digest == digest), default=0)

    def _make_way(self) -> None:
        """Room for an account that runs nothing, taken from the one that runs most."""
        crowded = self._crowding()
        if crowded is not None:
            self._preempted(self._running.take_from(crowded))

    def _crowding(self) -> str | None:
        """The account that has to give one sequence up, if one has."""
        crowded = self._running.crowded() if len(self._waiting) else None
        if crowded is None:
            return None
        head = next(self._waiting.candidates(self._adapters.admissible), None)
        if head is None or head.account_id in self._running.accounts:
            return None
        return None if self._has_room(head, self._prefixes.find(head)) else crowded

    def _has_room(self, sequence: Sequence, found: list[int]) -> bool:
        """Whether a row and the blocks beyond those `found` are free; alone, the blocks always are."""
        if self.num_running >= self._max_running:
            return False
        # Each running sequence may soon need one more block; without this reserve they would preempt the new one.
        needed = self._blocks.takes(found, len(sequence.tokens)) + self.num_running
        return not self.num_running or needed <= self._blocks.num_free

    def _decodes(self) -> list[Scheduled]:
        grown, block_tokens, preemptions = [], self._blocks.block_tokens, self.num_preemptions
        decode = State.DECODE  # looked up once: an enum's members are slow to find
        for sequence in list(self._running):
            if sequence.state is not decode or (sequence.num_pending and sequence.all_launched):
                continue
            if len(sequence.block_table) * block_tokens >= len(sequence.tokens):
                grown.append(Scheduled(sequence, 1))
                continue
            while not self._blocks.grow(sequence.block_table, len(sequence.tokens)):
                leaver = self._running.take_newest()
                self._preempted(leaver)
                if leaver is sequence:
                    break
            else:
                grown.append(Scheduled(sequence, 1))
        if preemptions != self.num_preemptions:  # one that had its block already may have given way to a later one
            grown = [step for step in grown if step.sequence.state is decode]
        return grown

    def _admissions(self, budget: int, now: float) -> list[Scheduled]:
        steps: list[Scheduled] = []
        if budget <= 0 or self.num_running >= self._max_running:
            return steps
        for sequence in self._waiting.candidates(self._adapters.admissible):
            found = self._prefixes.find(sequence)
            if not self._has_room(sequence, found):
                break
            self._blocks.share(found)
            sequence.block_table.extend(found)
            sequence.num_computed = len(found) * self._blocks.block_tokens
            grown = self._blocks.grow(sequence.block_table, len(sequence.tokens))
            assert grown
            self._start(sequence, now)
            steps.append(Scheduled(sequence, min(sequence.num_uncomputed, budget)))
            budget -= steps[-1].num_tokens
            if budget <= 0 or self.num_running >= self._max_running:
                break
        return steps

    def _start(self, sequence: Sequence, now: float) -> None:
        self._waiting.start(sequence)
        sequence.slot = self._adapters.acquire(sequence.digest)
        sequence.state = State.PREFILL
        if sequence.admitted_at is None:
            sequence.admitted_at = now
            sequence.cached_tokens = sequence.num_computed
            self._prefixes.started(sequence)
            computed = sequence.prompt_tokens - sequence.cached_tokens
            self._waiting.charge(sequence.account_id, sequence.digest, PROMPT_TOKEN_COST * computed, sequence.weight)
        if sequence.adapter_ready_at is None:
            sequence.adapter_ready_at = now
        self._running.add(sequence)

    def _preempted(self, sequence: Sequence) -> None:
        """Back to the queue with its tokens; what is not found in the cache is computed again when its turn comes."""
        assert not sequence.num_pending, "a step of it is under way"
        self._give_back(sequence)
        sequence.num_computed = 0
        sequence.state = State.WAITING
        self._waiting.put_back(sequence)
        self.num_preemptions += 1

    def _give_back(self, sequence: Sequence) -> None:
        self._blocks.release(sequence.block_table)
        self._adapters.release(sequence.digest)
        sequence.slot = BASE_SLOT
