"""Frames between a gateway process and a runtime process, as records; `codec.py` makes them bytes. No torch here: the
gateway imports this file.

Wire: 4-byte big-endian length, then one msgpack map with a `type` tag. One multiplexed connection per gateway
process: the gateway opens it, sends `Hello`, gets `Welcome` or `Refused`, then both sides send at any time. The
runtime sends one `Step` per engine step and connection with every token of that step. Sequence ids belong to the
connection: they are the gateway's own counters and mean nothing on another connection. A closed connection aborts
all its sequences. Text never crosses: token ids in, token ids out.
"""

from typing import Final, Literal

from storage.geometry import Geometry
from storage.records import Struct
from storage.tier_records import TierStats

PROTOCOL_VERSION: Final = 4
MAX_FRAME_BYTES: Final = 16 * 1024 * 1024
MAX_LOGIT_BIASES: Final = 300
MAX_STOP_TOKENS: Final = 256
MAX_TOP_LOGPROBS: Final = 20
MAX_GRAMMAR_BYTES: Final = 256 * 1024
MAX_REPORTED: Final = 20_000
MAX_PRIORITY: Final = 100  # either way
MIN_WEIGHT: Final = 0.01
MAX_WEIGHT: Final = 100.0
EXIT_CONFIG: Final = 78  # exit code of a process whose settings or weights are wrong: starting it again is no use

FinishReason = Literal["stop", "length", "abort", "error"]
FailureKind = Literal[
    "overloaded",
    "adapter_missing",
    "adapter_corrupt",
    "adapter_too_large",
    "adapter_unavailable",
    "too_long",
    "grammar",
    "timeout",
    "internal",
]
Tier = Literal["object", "disk", "memory", "device"]


class SamplingParams(Struct, frozen=True, omit_defaults=True):
    """How tokens are chosen. temperature 0 is greedy; top_k 0, top_p 1.0 and min_p 0 are off; penalties as in the
    contract; logit_bias: (token id, what is added to its logit).

    ignore_eos: the model's own end tokens do not end the answer; `stop_token_ids` still do.
    top_logprobs: None for no log-probabilities, else how many alternatives come with each token's own.
    """

    max_tokens: int = 256
    temperature: float = 0.6
    top_p: float = 1.0
    top_k: int = 0
    seed: int | None = None
    repetition_penalty: float = 1.0
    frequency_penalty: float = 0.0
    presence_penalty: float = 0.0
    stop_token_ids: tuple[int, ...] = ()
    min_p: float = 0.0
    logit_bias: tuple[tuple[int, float], ...] = ()
    ignore_eos: bool = False
    top_logprobs: int | None = None

    @property
    def has_penalties(self) -> bool:
        """Whether what was said changes what may be said."""
        return self.repetition_penalty != 1.0 or self.frequency_penalty != 0.0 or self.presence_penalty != 0.0


class Grammar(Struct, frozen=True):
    """What an answer must look like. json_schema: `source` is a JSON schema; lark: a grammar in llguidance's Lark.

    `source` has at most MAX_GRAMMAR_BYTES. A complete answer ends with "stop", `ignore_eos` or not.
    """

    kind: Literal["json_schema", "lark"]
    source: str


class AdapterRef(Struct, frozen=True):
    """A packed adapter in the object store. `digest` (sha256 hex of the packed file) identifies the weights."""

    digest: str
    object_key: str
    size_bytes: int
    rank: int
    finetune_id: str


# gateway -> runtime


class Hello(Struct, frozen=True, tag="hello"):
    """First frame. `token` is the shared secret of the deployment; a wrong one gets `Refused` and a close."""

    version: int
    token: str
    gateway_id: str


class Submit(Struct, frozen=True, tag="submit", omit_defaults=True):
    """Start one sequence. `account_id` is for fairness and cache isolation; `timeout_s` counts from arrival.

    grammar: the answer keeps to it, whatever the sampling says. priority: of the account's own sequences a lower one is
    served earlier. weight: the account's share of the service beside that of the others. only_if_free: refused as
    overloaded where it would have to wait for others to end.
    """

    sequence_id: int
    account_id: str
    token_ids: tuple[int, ...]
    sampling: SamplingParams
    adapter: AdapterRef | None = None
    traceparent: str | None = None
    timeout_s: float = 120.0
    grammar: Grammar | None = None
    priority: int = 0
    weight: float = 1.0
    only_if_free: bool = False


class Abort(Struct, frozen=True, tag="abort"):
    """End a sequence wherever it is; unknown ids are ignored. No output follows."""

    sequence_id: int


class Prefetch(Struct, frozen=True, tag="prefetch"):
    """Bring an adapter up to host memory. `soon`: for a request that follows in a moment."""

    adapter: AdapterRef
    soon: bool = False


class Forget(Struct, frozen=True, tag="forget"):
    """Drop an adapter from every tier of the runtime once nothing uses it (the finetune was deleted)."""

    digest: str


class Pins(Struct, frozen=True, tag="pins"):
    """Keep these in host memory, and nothing that this connection named before. It ends with the connection."""

    adapters: tuple[AdapterRef, ...]


class CacheQuery(Struct, frozen=True, tag="cache_query"):
    """Asks for a `CacheReport` with the same number."""

    number: int


class Where(Struct, frozen=True, tag="where"):
    """Asks in which tier each of these is: `Places` with the same number follows."""

    number: int
    digests: tuple[str, ...]


class Ping(Struct, frozen=True, tag="ping"):
    """Sent again and again: answered by `Alive` at once, and by a `Pong` when the engine comes to it."""

    sent_at: float


ClientFrame = Hello | Submit | Abort | Prefetch | Forget | Pins | CacheQuery | Where | Ping


# runtime -> gateway


class ModelInfo(Struct, frozen=True):
    """What this runtime serves. `max_sequence_tokens` bounds prompt plus answer. `geometry`: to compare with the
    gateway's own copy of the base.
    """

    name: str
    dtype: str
    device: str
    num_parameters: int
    vocab_size: int
    max_sequence_tokens: int
    max_rank: int
    eos_token_ids: tuple[int, ...]
    geometry: Geometry | None = None


class Welcome(Struct, frozen=True, tag="welcome"):
    """The connection is accepted."""

    version: int
    model: ModelInfo
    pid: int


class Refused(Struct, frozen=True, tag="refused"):
    """The connection is not accepted; a close follows. `reason` is a sentence for the operator's log."""

    reason: str


class Failure(Struct, frozen=True):
    """Why a sequence ended without an answer; `retry_after_s` is set when trying again may help."""

    kind: FailureKind
    message: str
    retry_after_s: float | None = None


class SequenceTiming(Struct, frozen=True, omit_defaults=True):
    """Seconds, measured by the runtime. `batch_*` are the largest numbers among the steps that it took part in."""

    queue_s: float = 0.0
    adapter_wait_s: float = 0.0
    first_token_s: float = 0.0
    total_s: float = 0.0
    batch_rows: int = 0
    batch_adapters: int = 0
    batch_accounts: int = 0
    adapter_source: Tier | None = None


class TokenScore(Struct, frozen=True, array_like=True):
    """Log-probability of a token, and the best (token id, log-probability) at its place, best first."""

    logprob: float
    top: tuple[tuple[int, float], ...] = ()


class SequenceOutput(Struct, frozen=True, omit_defaults=True):
    """New tokens of one sequence. With `finish_reason` it is the last one and carries usage and timing.

    scores: one for each of token_ids if the request has `top_logprobs`, else empty.
    """

    sequence_id: int
    token_ids: tuple[int, ...] = ()
    finish_reason: FinishReason | None = None
    failure: Failure | None = None
    prompt_tokens: int = 0
    completion_tokens: int = 0
    cached_tokens: int = 0
    timing: SequenceTiming | None = None
    scores: tuple[TokenScore, ...] = ()


class Step(Struct, frozen=True, tag="step"):
    """All outputs of one engine step for this connection."""

    outputs: tuple[SequenceOutput, ...]


class TierVisit(Struct, frozen=True):
    """One leg of an adapter's way to the device: bytes now in `tier`, and the seconds that getting there took."""

    tier: Tier
    seconds: float
    size_bytes: int


class AdapterStatus(Struct, frozen=True, tag="adapter"):
    """Pushed when an adapter arrives on the device, leaves it, or fails to load. `visits` is its latest way up."""

    digest: str
    resident: Tier | None
    visits: tuple[TierVisit, ...] = ()
    failure: Failure | None = None


class Stats(Struct, frozen=True, omit_defaults=True):
    """Load figures for routing and metrics. Counters run since the start of the process.

    refused: sequences turned away (queue full, unusable). cut_connections: gateways that did not read.
    free_blocks: that nobody uses; some of the cached_blocks are among them. prefix_hit_tokens: of the
    prefix_prompt_tokens of all sequences that started, found computed.

    start_s: from reading the settings until it took connections, with loading and warming up. graph_captures: decode
    steps that were recorded as graphs of a device, graph_capture_s: what that took, all together; graphs_failed: 1 once
    none can be recorded any more and every step is launched piece by piece.
    """

    running: int = 0
    waiting: int = 0
    waiting_for_adapter: int = 0
    free_blocks: int = 0
    total_blocks: int = 0
    adapters_resident: int = 0
    adapter_rows_used: int = 0
    adapter_rows_total: int = 0
    steps: int = 0
    generated_tokens: int = 0
    memory_bytes: int = 0
    disk_bytes: int = 0
    evictions: int = 0
    preemptions: int = 0
    refused: int = 0
    cut_connections: int = 0
    cached_blocks: int = 0
    prefix_hit_tokens: int = 0
    prefix_prompt_tokens: int = 0
    start_s: float = 0.0
    graph_captures: int = 0
    graph_capture_s: float = 0.0
    graphs_failed: int = 0


class Alive(Struct, frozen=True, tag="alive"):
    """First answer to `Ping`, at once: the process runs, however long the engine's present step may take."""


class Pong(Struct, frozen=True, tag="pong"):
    """Second answer to `Ping`, with the runtime's load. By the engine's own loop, so a hung engine does not give it."""

    sent_at: float
    stats: Stats


class TierReport(TierStats, frozen=True, omit_defaults=True, kw_only=True):
    """One tier of a runtime. For `device`, bytes are rank rows; the loads of `memory` are copies to the device."""

    tier: Tier


class CachedAdapter(Struct, frozen=True, omit_defaults=True):
    """An adapter in some tier of a runtime. `uses`: how often it was asked for since it came to memory."""

    digest: str
    size_bytes: int = 0
    device: bool = False
    memory: bool = False
    disk: bool = False
    pinned: bool = False
    uses: int = 0


class CacheReport(Struct, frozen=True, tag="cache"):
    """The tiers from the device down, and the adapters in them, the highest first, at most MAX_REPORTED; and the
    runtime's own figures."""

    number: int
    tiers: tuple[TierReport, ...]
    adapters: tuple[CachedAdapter, ...]
    stats: Stats = Stats()


class Places(Struct, frozen=True, tag="places"):
    """The highest tier that has each of the adapters asked for, in their order; None for one that no tier has."""

    number: int
    tiers: tuple[Tier | None, ...]


ServerFrame = Welcome | Refused | Step | AdapterStatus | CacheReport | Places | Alive | Pong


class ProtocolError(Exception):
    """The peer sent something that is not a frame of this protocol; the connection is closed."""
