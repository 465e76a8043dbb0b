"""The one request, chunk and usage of the gateway. Dialects in `wire/` map to and from these and declare nothing.

A `ChatRequest` is what a caller asked for, already validated, not yet resolved: `model` and `lora` are the caller's
words. `pipeline.py` resolves them and yields `Chunk`s; the last chunk has `finish_reason`, `usage` and `timing`.
"""

from typing import Literal

import msgspec

from runtime.protocol import SequenceTiming

Dialect = Literal["workers_ai", "openai", "anthropic"]
FinishReason = Literal["stop", "length", "tool_calls"]
Role = Literal["system", "user", "assistant", "tool"]


class Tool(msgspec.Struct, frozen=True):
    """A function that the model may ask the caller to run. `parameters` is its JSON schema, as text."""

    name: str
    description: str = ""
    parameters: str = "{}"


class ToolCall(msgspec.Struct, frozen=True):
    """The model asks for one call. `arguments` is a JSON object, as text."""

    id: str
    name: str
    arguments: str


class ToolCallDelta(msgspec.Struct, frozen=True):
    """A piece of the call number `index` of one answer: the first has id and name, all have more of the arguments."""

    index: int
    id: str | None = None
    name: str | None = None
    arguments: str = ""


class ToolChoice(msgspec.Struct, frozen=True):
    """auto: the model decides; none: it may not; required: it must call something, `name` alone if that is set."""

    mode: Literal["auto", "none", "required"] = "auto"
    name: str | None = None
    parallel: bool = True


class Message(msgspec.Struct, frozen=True, omit_defaults=True):
    """One turn, text only. Content parts are joined by the dialect; a null content is the empty string.

    tool_calls: what an assistant's turn asked for; tool_call_id and name: which call a tool's turn answers.
    """

    role: Role
    content: str = ""
    tool_calls: tuple[ToolCall, ...] = ()
    tool_call_id: str | None = None
    name: str | None = None


class Sampling(msgspec.Struct, frozen=True):
    """Contract ranges, contract defaults. None of top_p, top_k, seed and top_logprobs means "off".

    `max_tokens_given` False: the default, which is cut to what the context window leaves instead of refused.
    """

    max_tokens: int = 256
    max_tokens_given: bool = False
    temperature: float = 0.6
    top_p: float | None = None
    top_k: int | None = None
    seed: int | None = None
    repetition_penalty: float | None = None
    frequency_penalty: float | None = None
    presence_penalty: float | None = None
    stop: tuple[str, ...] = ()
    stop_token_ids: tuple[int, ...] = ()
    ignore_eos: bool = False
    min_p: float | None = None
    logit_bias: tuple[tuple[int, float], ...] = ()
    top_logprobs: int | None = None
    n: int = 1


class ChatRequest(msgspec.Struct, frozen=True):
    """One inference. Exactly one of `prompt` and `messages` is set. `raw` skips the chat template.

    json_schema: the answer must be JSON that this schema (text) accepts. tools: with messages only.
    priority: among the caller's own requests a lower one is served earlier.
    """

    dialect: Dialect
    model: str
    lora: str | None = None
    prompt: str | None = None
    messages: tuple[Message, ...] | None = None
    raw: bool = False
    stream: bool = False
    include_usage: bool = True
    reject_if_busy: bool = False
    sampling: Sampling = Sampling()
    json_schema: str | None = None
    tools: tuple[Tool, ...] = ()
    tool_choice: ToolChoice = ToolChoice()

    @property
    def offered(self) -> tuple[Tool, ...]:
        """The tools that the model is shown."""
        return () if self.tool_choice.mode == "none" else self.tools

    priority: int = 0


class Usage(msgspec.Struct, frozen=True):
    """Tokens, as counted by the backend that produced them."""

    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int = 0

    @property
    def total_tokens(self) -> int:
        """Prompt plus completion."""
        return self.prompt_tokens + self.completion_tokens


class ScoredText(msgspec.Struct, frozen=True):
    """A token by its text (half characters as U+FFFD) and its bytes, with its log-probability."""

    text: str
    data: bytes
    logprob: float


class TokenLogprob(ScoredText, frozen=True):
    """A token of the answer and the best at its place, best first."""

    top: tuple[ScoredText, ...] = ()


class Chunk(msgspec.Struct, frozen=True):
    """A piece of the answer. Only the last has `finish_reason`, and then `usage` and, if known, `timing`.

    With n > 1 every choice ends with a chunk that has `finish_reason`; only the very last has `usage`, that of all.
    logprobs: the tokens that became text here; None when they were not asked for. stop_string: of those that the
    request has, the one that ended the answer, told with the finish reason.
    """

    text: str = ""
    finish_reason: FinishReason | None = None
    usage: Usage | None = None
    timing: SequenceTiming | None = None
    index: int = 0
    logprobs: tuple[TokenLogprob, ...] | None = None
    tool_calls: tuple[ToolCallDelta, ...] = ()
    stop_string: str | None = None


class Identity(msgspec.Struct, frozen=True):
    """Who calls: made only by `accounts.Accounts.authenticate`, so holding one is proof of a valid token.

    weight: the account's share of the service beside that of the others.
    """

    account_id: str
    token_id: str
    permissions: frozenset[str]
    weight: float = 1.0


class ResolvedAdapter(msgspec.Struct, frozen=True):
    """A finetune's version that is ready to serve: `digest` and `object_key` name its packed file."""

    finetune_id: str
    name: str
    digest: str
    object_key: str
    size_bytes: int
    rank: int
    version: int = 1


class ResolvedRequest(msgspec.Struct, frozen=True):
    """A `ChatRequest` whose model and adapter are known to exist and to belong to the caller."""

    request: ChatRequest
    identity: Identity
    model: str
    adapter: ResolvedAdapter | None
    log_id: str
    traceparent: str | None = None
