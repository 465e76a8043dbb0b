"""A backend that is a runtime process on this machine: text to ids, ids to text, and its failures to typed errors.

The runtime knows tokens only. Here the prompt is encoded (off the event loop when it is long), checked against the
context window, sent, and the tokens that come back are turned into text piece by piece; a stop string ends the answer
before it is shown and aborts the sequence. A runtime that is restarting is waited for, for a bounded time; one that
goes away in the middle of an answer is an error at once: what it had said cannot be continued by another.
"""

import asyncio
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from contextlib import aclosing
from typing import Final, NamedTuple, TypeVar

import msgspec

from gateway.backends.answer_text import AnswerText
from gateway.backends.choices import choice_seed, side_by_side
from gateway.backends.failures import raise_failure, unavailable
from gateway.backends.sampling import context_length, sampling_params
from gateway.errors import BadInput, ContextExceeded
from gateway.messages import ChatRequest, Chunk, ResolvedAdapter, ResolvedRequest
from gateway.text.scored_tokens import ScoredTokens
from gateway.text.template import TemplateFault
from gateway.text.token_texts import TokenTexts
from gateway.text.tokenizer import NoToolCalls, PromptTooLong, Tokenizer, request_chars
from gateway.text.tool_calls.formats import call_grammar
from runtime.client import RuntimeClient, RuntimeLost
from runtime.protocol import (
    AdapterRef,
    AdapterStatus,
    Grammar,
    SamplingParams,
)

# Encoding takes about a microsecond per three characters: longer texts leave the event loop.
_INLINE_CHARS: Final = 4096
# Whoever asks how long a prompt is learns it up to so many times the context window.
COUNTED_WINDOWS: Final = 8

T = TypeVar("T")


class _Prompt(NamedTuple):
    """What the choices of a request have in common."""

    token_ids: list[int]
    sampling: SamplingParams
    grammar: Grammar | None


class RuntimeBackend:
    """One base on one runtime. `client` is owned and closed by whoever made it."""

    def __init__(
        self,
        client: RuntimeClient,
        tokenizer: Tokenizer,
        *,
        context_window: int,
        restart_wait_s: float,
        request_timeout_s: float,
    ) -> None:
        self._client = client
        self._tokenizer = tokenizer
        self._texts = TokenTexts(tokenizer.encoder)
        self._context_window = context_window
        self._restart_wait_s = restart_wait_s
        self._request_timeout_s = request_timeout_s

    def generate(self, request: ResolvedRequest) -> AsyncGenerator[Chunk, None]:
        """See `Backend.generate`."""
        return self._choice(request) if request.request.sampling.n == 1 else self._choices(request)

    async def _choices(self, request: ResolvedRequest) -> AsyncGenerator[Chunk, None]:
        prompt = await self._prepare(request)
        choices = [self._choice(request, prompt, index) for index in range(request.request.sampling.n)]
        async with aclosing(side_by_side(choices)) as chunks:
            async for chunk in chunks:
                yield chunk

    async def _prepare(self, request: ResolvedRequest) -> _Prompt:
        asked = request.request
        await self._bring_nearer(request.adapter)
        try:
            info = await self._client.wait_ready(self._restart_wait_s)
        except RuntimeLost as error:
            raise unavailable(error) from error
        window = min(self._context_window, info.max_sequence_tokens)
        prompt = await self._encode(asked, window)
        wants_grammar = asked.json_schema is not None or asked.tools
        grammar = await _away(asked, _grammar, asked, self._tokenizer) if wants_grammar else None
        sampling = sampling_params(asked, len(prompt), window, info, self._tokenizer.eos_token_id)
        return _Prompt(prompt, sampling, grammar)

    async def _choice(
        self, request: ResolvedRequest, prompt: _Prompt | None = None, index: int = 0
    ) -> AsyncGenerator[Chunk, None]:
        """One sequence, as text. Without a `prompt` it is the only one and makes its own."""
        token_ids, sampling, grammar = prompt or await self._prepare(request)
        outputs = self._client.submit(
            account_id=request.identity.account_id,
            token_ids=token_ids,
            sampling=_seeded(sampling, index),
            adapter=adapter_ref(request.adapter) if request.adapter else None,
            traceparent=request.traceparent,
            timeout_s=self._request_timeout_s,
            grammar=grammar,
            priority=request.request.priority,
            weight=request.identity.weight,
            only_if_free=request.request.reject_if_busy,
        )
        scored = None if sampling.top_logprobs is None else ScoredTokens(self._texts)
        answer = AnswerText(self._tokenizer, request.request, len(token_ids), scored)
        try:
            async with aclosing(outputs):
                async for output in outputs:
                    if output.failure is not None:
                        raise_failure(output.failure, request)
                    chunk = answer.take(output)
                    if chunk is not None:
                        yield chunk
                        if chunk.finish_reason is not None:
                            return
        except RuntimeLost as error:
            raise unavailable(error) from error

    async def _bring_nearer(self, adapter: ResolvedAdapter | None) -> None:
        """What is cold sets out at once: template, tokens and grammar take their time meanwhile."""
        if adapter is not None:
            status = self._client.adapter_status(adapter.digest)
            if status is None or status.resident not in ("device", "memory"):
                await self._client.prefetch(adapter_ref(adapter), soon=True)

    async def adapter_statuses(self, digests: Sequence[str]) -> Mapping[str, AdapterStatus]:
        """See `Backend.adapter_statuses`."""
        return await self._client.adapter_statuses(digests)

    async def prefetch(self, adapter: AdapterRef) -> None:
        """See `Backend.prefetch`."""
        await self._client.prefetch(adapter)

    async def forget(self, digest: str) -> None:
        """See `Backend.forget`."""
        await self._client.forget(digest)

    def ready(self) -> str | None:
        """See `Backend.ready`."""
        return self._client.problem

    async def count_tokens(self, asked: ChatRequest) -> int:
        """See `Backend.count_tokens`. Asks no runtime."""
        return len(await self._tokens(asked, COUNTED_WINDOWS * self._context_window))

    async def _tokens(self, asked: ChatRequest, window: int) -> list[int]:
        """Raises ContextExceeded for a prompt far beyond the window, BadInput when the template refuses."""
        try:
            return await _away(asked, self._tokenizer.encode_request, asked, window)
        except TemplateFault as error:
            raise BadInput(
                f"AiError: Bad input: Error: the model's chat template refuses these messages: {error}",
                param="messages",
            ) from error
        except NoToolCalls as error:
            raise BadInput(f"AiError: Bad input: Error: {error}", param="tools") from error
        except PromptTooLong as error:
            raise ContextExceeded(
                f"{context_length(window)}, and the prompt has over {error.least}: send less text"
            ) from error

    async def _encode(self, asked: ChatRequest, window: int) -> list[int]:
        """Raises ContextExceeded when the prompt leaves no room for one token, BadInput as `_tokens`."""
        prompt = await self._tokens(asked, window)
        if not prompt:
            raise BadInput("AiError: Bad input: Error: the prompt has no tokens; send some text", param="prompt")
        if len(prompt) >= window:
            raise ContextExceeded(
                f"{context_length(window)}, for prompt and answer together, and the prompt has {len(prompt)}: "
                "send less text"
            )
        return prompt


async def _away(asked: ChatRequest, work: Callable[..., T], *arguments: object) -> T:
    """Work that grows with the caller's words: off the event loop when they are many."""
    if request_chars(asked) + len(asked.json_schema or "") <= _INLINE_CHARS:
        return work(*arguments)
    return await asyncio.to_thread(work, *arguments)


def _seeded(sampling: SamplingParams, index: int) -> SamplingParams:
    seed = choice_seed(sampling.seed, index)
    return sampling if seed == sampling.seed else msgspec.structs.replace(sampling, seed=seed)


def _grammar(asked: ChatRequest, tokenizer: Tokenizer) -> Grammar | None:
    """What the answer must look like, if anything."""
    lark = call_grammar(tokenizer.tool_format, asked, tokenizer.mark_ids)
    if lark is not None:
        return Grammar("lark", lark)
    if asked.json_schema is not None:
        return Grammar("json_schema", asked.json_schema)
    return None


def adapter_ref(adapter: ResolvedAdapter) -> AdapterRef:
    """What the runtime is told about an adapter."""
    return AdapterRef(adapter.digest, adapter.object_key, adapter.size_bytes, adapter.rank, adapter.finetune_id)
