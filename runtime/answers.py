"""The sequences that have not ended, and what is said to their callers. No torch, no clock.

Each sequence is here from when it is taken until its last output, or until its caller goes. A refusal is a last output
too, of a sequence that never was here.
"""

from collections.abc import Collection, Iterable

from runtime.admission import QueueSpeed
from runtime.batch import Sampled
from runtime.ending import ending
from runtime.protocol import Failure, FinishReason, SequenceOutput, Submit, TokenScore
from runtime.scheduler import Scheduler
from runtime.sequence import Sequence
from storage.records import Struct


class Output(Struct, frozen=True, gc=False):
    """An output and the connection it belongs to."""

    owner: int
    output: SequenceOutput


class Answers:
    """`live`: by owner and the owner's id. What ended holds nothing of the scheduler's from then on."""

    def __init__(self, scheduler: Scheduler, eos_token_ids: Collection[int]) -> None:
        self._scheduler, self._eos_token_ids = scheduler, eos_token_ids
        self._outputs: list[Output] = []
        self._speed = QueueSpeed()
        self.live: dict[tuple[int, int], Sequence] = {}
        self.num_refused = 0

    def refuse(self, owner: int, request: Submit, failure: Failure) -> None:
        """Its only output."""
        self.num_refused += 1
        output = SequenceOutput(
            sequence_id=request.sequence_id,
            finish_reason="error",
            failure=failure,
            prompt_tokens=len(request.token_ids),
        )
        self._outputs.append(Output(owner, output))

    def displace(self, sequence: Sequence, now: float) -> None:
        """Ends one that waited in a full queue, for one of more weight."""
        self.num_refused += 1
        self.end(sequence, "error", self.overloaded(), now)

    def overloaded(self) -> Failure:
        """What one hears that the queue has no room for."""
        return self._speed.overloaded(self._scheduler.num_waiting)

    def deliver(self, sequence: Sequence, found: Sampled, now: float) -> None:
        """Its next token, and its end if that was the last."""
        token: int
        scores: tuple[TokenScore, ...]
        token, scores = (found, ()) if isinstance(found, int) else (found.token_id, (found.score,))
        if sequence.first_token_at is None:
            sequence.first_token_at = now
        reason, shown, failure = ending(sequence, token, self._eos_token_ids)
        token_ids, scores = ((token,), scores) if shown else ((), ())
        if reason is not None:
            self.end(sequence, reason, failure, now, token_ids, scores)
        else:
            said = SequenceOutput(sequence.sequence_id, token_ids, scores=scores)
            self._outputs.append(Output(sequence.owner, said))

    def end(
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
        del self.live[sequence.owner, sequence.sequence_id]
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

    def fail(self, sequences: Iterable[Sequence], failure: Failure, now: float) -> None:
        """Ends them all for one reason."""
        for sequence in sequences:
            self.end(sequence, "error", failure, now)

    def leave(self, owner: int, sequence_id: int) -> Sequence | None:
        """Nobody wants it any more: the live sequence, whose end is the caller's, or None; no output is left of it."""
        self._outputs = [
            item for item in self._outputs if (item.owner, item.output.sequence_id) != (owner, sequence_id)
        ]  # fmt: skip
        return self.live.pop((owner, sequence_id), None)

    def leave_all(self, owner: int) -> list[Sequence]:
        """The same for all of a connection."""
        self._outputs = [item for item in self._outputs if item.owner != owner]
        return [self.live.pop(key) for key in [key for key in self.live if key[0] == owner]]

    def take(self) -> tuple[Output, ...]:
        """What was said since the last call."""
        outputs, self._outputs = tuple(self._outputs), []
        return outputs
