"""Plain records between scheduler, engine and runner. No torch, no clock.

One step is one `Batch`: for every scheduled sequence a `Row` with the new tokens to compute, whether prefill chunk or
one decode token. Rows are ordered by slot (base rows, -1, first), so each adapter's tokens are one contiguous segment.
What is made for every row of every step is a `Struct`: a named tuple takes four times as long to make.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final, NamedTuple, Protocol, runtime_checkable

from runtime.grammars.constraint import Constraint
from runtime.protocol import SamplingParams, TokenScore
from storage.packed import Packed
from storage.records import Struct

BASE_SLOT = -1
# Stands for a token that the step before draws: the device knows it and the host does not yet.
PENDING: Final = -1


class Row(Struct, frozen=True, gc=False):
    """One sequence in one step.

    token_ids: the new tokens, at positions start .. start + len(token_ids) - 1; their keys and values are written.
        For a runner that runs ahead the last one, here and in `history`, may be PENDING.
    block_table: physical block of each logical block, covering every position up to the last new token.
    slot: adapter slot, or BASE_SLOT.
    samples: True when the logits of the last token are sampled (False for all but the last chunk of a prefill).
    history: every token so far, prompt and answer, for penalties; prompt_tokens of them are the prompt.
    seed: fixes the draw together with the position, whatever the batch.
    constraint: only words that it allows are sampled; the runner asks, the engine tells it what was said.
    """

    sequence_id: int
    token_ids: Sequence[int]
    start: int
    block_table: Sequence[int]
    slot: int
    samples: bool
    sampling: SamplingParams
    history: Sequence[int]
    prompt_tokens: int
    seed: int
    constraint: Constraint | None = None


@dataclass(frozen=True)
class Batch:
    """The rows of one step, ordered by slot."""

    rows: tuple[Row, ...]


class Scored(NamedTuple):
    """A sampled token with its log-probabilities, for rows whose `top_logprobs` is set."""

    token_id: int
    score: TokenScore


Sampled = int | Scored


class Runner(Protocol):
    """What the engine needs of a device. `runner.py` is torch; tests of the decisions use a fake."""

    def execute(self, batch: Batch) -> Sequence[Sampled]:
        """Runs the model over the batch; one sampled token per row with `samples`, in row order.

        A step may be repeated: it writes the same keys and values and draws the same tokens. Raises LogitsInvalid
        and GrammarStuck, which name the sequences whose numbers overflowed or whose grammar allows nothing (repeat the
        step without them), RunnerMisused, DeviceLost.
        """
        ...

    def write_adapter(self, slot: int, row_offset: int, packed: Packed, first_layer: int, num_layers: int) -> None:
        """Copies these layers of an adapter into rank rows row_offset .. row_offset + rank - 1 of the pool.

        Rows of modules that the adapter lacks are zeroed. Layers come in order, from 0; after the last one the slot
        may be used by `execute`. Raises AdapterInvalid (the slot is empty again) and RunnerMisused.
        """
        ...

    def release_slot(self, slot: int) -> None:
        """The slot's rows may be overwritten; no later batch names it."""
        ...


Flight = Any
"""A step that a device has been given and whose tokens nobody has read yet: the runner's own record of it."""


@runtime_checkable
class RunsAhead(Protocol):
    """A runner that takes a step while the one before it still runs: the host's work then costs the device no time."""

    def launch(self, batch: Batch) -> Flight:
        """Starts a step and returns at once. A row whose last token is PENDING continues the sequence's row of the
        step launched before this one. At most one earlier step may be unfinished.

        Nothing has been started when it raises: GrammarStuck, RunnerMisused or DeviceLost, as `execute`.
        """
        ...

    def finish(self, flight: Flight) -> Sequence[Sampled | None]:
        """Waits for the step; steps are finished in the order of their launches, each once. One entry per row with
        `samples`, in row order, None where its numbers overflowed; the other rows are right. Raises DeviceLost."""
        ...


class GraphFigures(Protocol):
    """See `runtime.graphs.GraphReport`."""

    @property
    def captures(self) -> int: ...
    @property
    def capture_s(self) -> float: ...
    @property
    def failed(self) -> int: ...


class Graphs(Protocol):
    """What a runner records its decode steps in."""

    @property
    def report(self) -> GraphFigures: ...


@runtime_checkable
class KeepsGraphs(Protocol):
    """A runner whose decode steps are recorded once and then started with one call."""

    @property
    def graphs(self) -> Graphs: ...


@runtime_checkable
class CopiesBeside(Protocol):
    """A runner that copies adapters while steps run, instead of `write_adapter`'s slice by slice between them."""

    def begin_adapter(self, slot: int, row_offset: int, packed: Packed) -> None:
        """Starts a copy into rank rows row_offset .. row_offset + rank - 1; `packed` must stay until it has ended.

        Steps under way may still read what these rows and this slot held before. Raises AdapterInvalid (the slot is
        empty) and RunnerMisused.
        """
        ...

    def poll_adapter(self, slot: int) -> bool:
        """Whether the copy has ended; never waits. From True on the slot may be used by steps. Raises AdapterInvalid
        when the adapter cannot be used (the slot is empty then)."""
        ...
