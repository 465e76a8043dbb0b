"""A backend that is a runtime process on this machine: text to ids, ids to text, and its failures to typed errors.

The runtime knows tokens only. Here the prompt is encoded (off the event loop when it is long), checked against the
context window, sent, and the tokens that come back are turned into text piece by piece; a stop string ends the answer
before it is shown and aborts the sequence. A runtime that is restarting is waited for, for a bounded time; one that
goes away in the middle of an answer is an error at once: what it had said cannot be continued by another.
"""

import asyncio
import logging
from collections.abc import AsyncGenerator, Iterable
from contextlib import aclosing
from typing import Final, NoReturn

import msgspec

from gateway.backends.choices import choice_seed, side_by_side
from gateway.errors import (
    BadInput,
    ContextExceeded,
    FinetuneNotFound,
    InternalError,
    OverCapacity,
    RequestTimeout,
    RuntimeUnavailable,
    StorageUnavailable,
)
from gateway.messages import ChatRequest, Chunk, FinishReason, ResolvedAdapter, ResolvedRequest, Usage
from gateway.text.detokenizer import Detokenizer, StopStrings
from gateway.text.scored_tokens import ScoredTokens
from gateway.text.template import TemplateFault
from gateway.text.token_texts import TokenTexts
from gateway.text.tokenizer import PromptTooLong, Tokenizer, request_chars
from runtime.client import RuntimeClient, RuntimeLost
from runtime.protocol import (
    AdapterRef,
    AdapterStatus,
    Failure,
    ModelInfo,
    SamplingParams,
    SequenceOutput,
    SequenceTiming,
)

logger = logging.getLogger(__name__)

# Encoding takes about a microsecond per three characters: longer texts leave the event loop.
_INLINE_CHARS: Final = 4096
_RETRY_AFTER_S: Final = 2.0
# Log-probabilities are gathered for an answer that is not streamed, and for the log: about 25 MB a request at most.
MAX_SCORES: Final = 128 * 1024


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

    async def generate(self, request: ResolvedRequest) -> AsyncGenerator[Chunk, None]:
        """See `Backend.generate`."""
        asked = request.request
        try:
            info = await self._client.wait_ready(self._restart_wait_s)
        except RuntimeLost as error:
            raise _unavailable(error) from error
        if asked.reject_if_busy:
            self._reject_if_busy()
        window = min(self._context_window, info.max_sequence_tokens)
        prompt = await self._encode(asked, window)
        sampling = self._sampling(asked, len(prompt), window, info)
        choices = [
            self._choice(request, prompt, msgspec.structs.replace(sampling, seed=choice_seed(sampling.seed, index)))
            for index in range(asked.sampling.n)
        ]
        async with aclosing(choices[0] if len(choices) == 1 else side_by_side(choices)) as chunks:
            async for chunk in chunks:
                yield chunk

    async def _choice(
        self, request: ResolvedRequest, prompt: list[int], sampling: SamplingParams
    ) -> AsyncGenerator[Chunk, None]:
        """One sequence, as text."""
        outputs = self._client.submit(
            account_id=request.identity.account_id,
            token_ids=prompt,
            sampling=sampling,
            adapter=adapter_ref(request.adapter) if request.adapter else None,
            traceparent=request.traceparent,
            timeout_s=self._request_timeout_s,
        )
        scored = None if sampling.top_logprobs is None else ScoredTokens(self._texts)
        answer = _Answer(self._tokenizer, request.request.sampling.stop, len(prompt), scored)
        try:
            async with aclosing(outputs):
                async for output in outputs:
                    if output.failure is not None:
                        _raise(output.failure, request)
                    chunk = answer.take(output)
                    if chunk is not None:
                        yield chunk
                        if chunk.finish_reason is not None:
                            return
        except RuntimeLost as error:
            raise _unavailable(error) from error

    def adapter_status(self, digest: str) -> AdapterStatus | None:
        """See `Backend.adapter_status`."""
        return self._client.adapter_status(digest)

    async def prefetch(self, adapter: AdapterRef) -> None:
        """See `Backend.prefetch`."""
        await self._client.prefetch(adapter)

    async def forget(self, digest: str) -> None:
        """See `Backend.forget`."""
        await self._client.forget(digest)

    def ready(self) -> str | None:
        """See `Backend.ready`."""
        return self._client.problem

    async def _encode(self, asked: ChatRequest, window: int) -> list[int]:
        """Raises ContextExceeded when the prompt leaves no room for one token, BadInput when the template refuses."""
        try:
            if request_chars(asked) <= _INLINE_CHARS:
                prompt = self._tokenizer.encode_request(asked, window)
            else:
                prompt = await asyncio.to_thread(self._tokenizer.encode_request, asked, window)
        except TemplateFault as error:
            raise BadInput(
                f"AiError: Bad input: Error: the model's chat template refuses these messages: {error}",
                param="messages",
            ) from error
        except PromptTooLong as error:
            raise ContextExceeded(
                f"the prompt has over {error.least} tokens; the model's context window has {window}: send less text"
            ) from error
        if not prompt:
            raise BadInput("AiError: Bad input: Error: the prompt has no tokens; send some text", param="prompt")
        if len(prompt) >= window:
            raise ContextExceeded(
                f"the prompt has {len(prompt)} tokens; the model's context window has {window}, for prompt and answer "
                "together: send less text"
            )
        return prompt

    def _sampling(self, asked: ChatRequest, num_prompt: int, window: int, info: ModelInfo) -> SamplingParams:
        """A max_tokens that the caller set must fit; the default is cut to what is left.

        Raises ContextExceeded, and BadInput for token ids that the model does not have.
        """
        wanted, room = asked.sampling, window - num_prompt
        if wanted.max_tokens_given and wanted.max_tokens > room:
            raise ContextExceeded(
                f"the prompt has {num_prompt} tokens and max_tokens is {wanted.max_tokens}, together more than the "
                f"model's context window of {window}: ask for at most {room} tokens or send less text"
            )
        _check_ids("stop_token_ids", wanted.stop_token_ids, info.vocab_size)
        _check_ids("logit_bias", (token_id for token_id, _ in wanted.logit_bias), info.vocab_size)
        max_tokens = min(wanted.max_tokens, room)
        if wanted.top_logprobs is not None and max_tokens * wanted.n * (1 + wanted.top_logprobs) > MAX_SCORES:
            raise BadInput(
                f"AiError: Bad input: Error: max_tokens * n * (1 + top_logprobs) is over {MAX_SCORES}: ask for fewer "
                "tokens or log-probabilities",
                param="top_logprobs",
            )
        stops = set(wanted.stop_token_ids)
        if not wanted.ignore_eos:
            stops.update(info.eos_token_ids)
            if self._tokenizer.eos_token_id is not None:
                stops.add(self._tokenizer.eos_token_id)
        return SamplingParams(
            max_tokens=max_tokens,
            temperature=wanted.temperature,
            top_p=1.0 if wanted.top_p is None else wanted.top_p,
            top_k=wanted.top_k or 0,
            seed=wanted.seed,
            repetition_penalty=wanted.repetition_penalty or 1.0,
            frequency_penalty=wanted.frequency_penalty or 0.0,
            presence_penalty=wanted.presence_penalty or 0.0,
            stop_token_ids=tuple(sorted(stops)),
            min_p=wanted.min_p or 0.0,
            logit_bias=wanted.logit_bias,
            ignore_eos=wanted.ignore_eos,
            top_logprobs=wanted.top_logprobs,
        )

    def _reject_if_busy(self) -> None:
        stats = self._client.stats
        if stats is not None and stats.waiting > 0:
            raise OverCapacity("Capacity temporarily exceeded, please try again.", retry_after_s=1)


class _Answer:
    """Outputs of the runtime to chunks of text; ends by a finish reason or by a stop string."""

    def __init__(
        self, tokenizer: Tokenizer, stops: tuple[str, ...], num_prompt: int, scored: ScoredTokens | None
    ) -> None:
        self._text = Detokenizer(tokenizer.encoder)
        self._stops = StopStrings(stops)
        self._scored = scored
        self._num_prompt = num_prompt
        self._num_tokens = 0

    def take(self, output: SequenceOutput) -> Chunk | None:
        """None when nothing can be shown yet."""
        self._num_tokens += len(output.token_ids)
        if self._scored is not None:
            self._scored.push(output.token_ids, output.scores)
        text = self._stops.push(self._text.push(output.token_ids))
        if self._stops.matched:
            if output.finish_reason is None:
                return self._last(text, "stop", Usage(self._num_prompt, self._num_tokens), None)
            return self._last(text, "stop", _usage(output), output.timing)
        if output.finish_reason == "stop" or output.finish_reason == "length":
            return self._last(text + self._stops.flush(), output.finish_reason, _usage(output), output.timing)
        if output.finish_reason is not None:
            raise RuntimeUnavailable(
                "the model's runtime stopped in the middle; try again", retry_after_s=_RETRY_AFTER_S
            )
        return Chunk(text, logprobs=None if self._scored is None else self._scored.shown(text)) if text else None

    def _last(self, text: str, reason: FinishReason, usage: Usage, timing: SequenceTiming | None) -> Chunk:
        logprobs = None
        if self._scored is not None:
            logprobs = self._scored.shown(text) + (() if self._stops.matched else self._scored.rest())
        return Chunk(text, reason, usage, timing, logprobs=logprobs)


def _check_ids(name: str, token_ids: Iterable[int], vocab_size: int) -> None:
    for token_id in token_ids:
        if token_id >= vocab_size:
            raise BadInput(
                f"AiError: Bad input: Error: '{name}' names token {token_id}; the model's token ids are 0 to "
                f"{vocab_size - 1}",
                param=name,
            )


def adapter_ref(adapter: ResolvedAdapter) -> AdapterRef:
    """What the runtime is told about an adapter."""
    return AdapterRef(adapter.digest, adapter.object_key, adapter.size_bytes, adapter.rank, adapter.finetune_id)


def _usage(output: SequenceOutput) -> Usage:
    return Usage(output.prompt_tokens, output.completion_tokens, output.cached_tokens)


def _unavailable(error: RuntimeLost) -> RuntimeUnavailable:
    logger.warning("runtime unavailable: %s", error)
    return RuntimeUnavailable("the model's runtime is down or restarting; try again soon", retry_after_s=_RETRY_AFTER_S)


def _raise(failure: Failure, request: ResolvedRequest) -> NoReturn:
    """A failure of the runtime as the error that the caller gets; what only the operator can mend is logged."""
    retry_after_s = failure.retry_after_s
    name = request.request.lora
    match failure.kind:
        case "overloaded":
            raise OverCapacity("Capacity temporarily exceeded, please try again.", retry_after_s=retry_after_s or 1)
        case "too_long":
            raise ContextExceeded(failure.message)
        case "timeout":
            raise RequestTimeout("the answer was not complete in time; ask for fewer tokens or try again")
        case "adapter_missing":
            raise FinetuneNotFound(
                f"AiError: AiError: Finetune {name} not found: its stored file is gone; upload it again"
            )
        case "adapter_too_large":
            raise BadInput(f"finetune {name} cannot be served by this deployment: {failure.message}", param="lora")
        case "adapter_unavailable":
            logger.warning("log %s: adapter unavailable: %s", request.log_id, failure.message)
            raise StorageUnavailable(
                "the finetune's file cannot be read at the moment", retry_after_s=retry_after_s or 2
            )
        case "adapter_corrupt":
            logger.error("log %s: adapter damaged: %s", request.log_id, failure.message)
            raise InternalError(f"the stored file of finetune {name} is damaged; upload it again")
        case "internal":
            logger.error("log %s: runtime failure: %s", request.log_id, failure.message)
            raise InternalError("the model failed on this request; try again")
