"""One sequence from arrival to its last token: what it is, where it stands, what it holds. No torch, no clock.

    WAITING_ADAPTER <> WAITING > PREFILL > DECODE > FINISHED
                          ^_________|________|  (preempted: blocks and adapter given back, tokens kept)

The scheduler moves it and is the only one that hands out `block_table` and `slot`; times are given by the engine.
A preempted sequence prefills prompt and answer again; a token depends on history, seed and position only, so the
answer stays the same.
"""

import enum
from dataclasses import dataclass, field

from runtime.batch import BASE_SLOT
from runtime.grammars.constraint import Constraint
from runtime.protocol import AdapterRef, SamplingParams, SequenceTiming, Submit, Tier


class State(enum.Enum):
    """Where a sequence stands. WAITING_ADAPTER: its adapter is not on the device yet."""

    WAITING_ADAPTER = enum.auto()
    WAITING = enum.auto()
    PREFILL = enum.auto()
    DECODE = enum.auto()
    FINISHED = enum.auto()


@dataclass(eq=False, slots=True)
class Sequence:
    """`number` is the engine's own id and the order of arrival; (owner, sequence_id) is the gateway's name for it.

    tokens: prompt and answer so far; the first num_computed of them have keys and values in the blocks, or will have
        when the steps under way have ended. The last num_pending are PENDING: such a step draws them.
    block_keys: what its full blocks are known by, from the first on, as far as anybody asked (`prefix_cache.py`).
    cached_tokens: of the prompt, found computed when it first started.
    constraint: what its grammar allows next; it has taken the answer's tokens, whatever was preempted.
    priority orders it among its account's own, lower first; weight is its account's share of the service.
    digest: of its adapter; None for the base. party: who is charged for its tokens (account, adapter, weight).
    seat: its age when somebody has to give way, num_yields: how often it has left in another's stead (`running.py`).
    Times are seconds of the engine's clock.
    """

    number: int
    owner: int
    sequence_id: int
    account_id: str
    adapter: AdapterRef | None
    sampling: SamplingParams
    seed: int
    tokens: list[int]
    prompt_tokens: int
    arrived_at: float
    deadline: float
    priority: int = 0
    weight: float = 1.0
    state: State = State.WAITING
    num_computed: int = 0
    num_pending: int = 0
    block_table: list[int] = field(default_factory=list)
    block_keys: list[bytes] = field(default_factory=list)
    cached_tokens: int = 0
    slot: int = BASE_SLOT
    constraint: Constraint | None = None
    seat: int = field(init=False)
    digest: str | None = field(init=False)
    party: tuple[str, str | None, float] = field(init=False)
    num_yields: int = 0
    admitted_at: float | None = None
    adapter_ready_at: float | None = None
    adapter_source: Tier | None = None
    first_token_at: float | None = None
    batch_rows: int = 0
    batch_adapters: int = 0
    batch_accounts: int = 0

    def __post_init__(self) -> None:
        self.seat = self.number
        self.digest = None if self.adapter is None else self.adapter.digest
        self.party = (self.account_id, self.digest, self.weight)

    @classmethod
    def of(
        cls, number: int, owner: int, request: Submit, seed: int, constraint: Constraint | None, arrived_at: float
    ) -> "Sequence":
        """The sequence of an acceptable request. seed: of 63 bits."""
        return cls(
            number=number,
            owner=owner,
            sequence_id=request.sequence_id,
            account_id=request.account_id,
            adapter=request.adapter,
            sampling=request.sampling,
            seed=seed,
            tokens=list(request.token_ids),
            prompt_tokens=len(request.token_ids),
            arrived_at=arrived_at,
            deadline=arrived_at + request.timeout_s,
            priority=request.priority,
            weight=request.weight,
            state=State.WAITING if request.adapter is None else State.WAITING_ADAPTER,
            constraint=constraint,
        )

    @property
    def num_generated(self) -> int:
        """Tokens of the answer that are known, a stop token that ended it included."""
        return len(self.tokens) - self.num_pending - self.prompt_tokens

    @property
    def num_uncomputed(self) -> int:
        """Tokens that still need keys and values before the next one can be sampled."""
        return len(self.tokens) - self.num_computed

    @property
    def all_launched(self) -> bool:
        """Whether the last token that it may say is known or under way."""
        return len(self.tokens) - self.prompt_tokens >= self.sampling.max_tokens

    @property
    def num_remaining(self) -> int:
        """The most tokens that it may still generate, those under way included."""
        return self.sampling.max_tokens - self.num_generated

    @property
    def waiting(self) -> bool:
        """True while it holds nothing on the device."""
        return self.state in (State.WAITING, State.WAITING_ADAPTER)

    def joined(self, rows: int, adapters: int, accounts: int) -> None:
        """Notes a step that it took part in."""
        if rows > self.batch_rows:
            self.batch_rows = rows
        if adapters > self.batch_adapters:
            self.batch_adapters = adapters
        if accounts > self.batch_accounts:
            self.batch_accounts = accounts

    def timing(self, now: float) -> SequenceTiming:
        """What happened until `now`, in seconds since arrival."""
        admitted = now if self.admitted_at is None else self.admitted_at
        adapter_wait_s = 0.0
        if self.adapter is not None:
            adapter_wait_s = (now if self.adapter_ready_at is None else self.adapter_ready_at) - self.arrived_at
        return SequenceTiming(
            queue_s=admitted - self.arrived_at,
            adapter_wait_s=adapter_wait_s,
            first_token_s=0.0 if self.first_token_at is None else self.first_token_at - self.arrived_at,
            total_s=now - self.arrived_at,
            batch_rows=self.batch_rows,
            batch_adapters=self.batch_adapters,
            batch_accounts=self.batch_accounts,
            adapter_source=self.adapter_source,
        )
