"""What every backend must do, whatever answers behind it. Test files subclass `Conformance` and give a `harness`."""

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any

import msgspec
import pytest

from gateway.backends.base import Backend
from gateway.errors import ContextExceeded
from gateway.messages import ChatRequest, Chunk, Identity, Message, ResolvedRequest, Sampling
from runtime.protocol import AdapterRef

MODEL = "@cf/lorikeet/demo-lora"


@dataclass
class Harness:
    """A backend; `question` has an answer of more than four pieces; `idle` returns when it holds nothing any more."""

    backend: Backend
    question: str
    window: int
    idle: Callable[[], Awaitable[None]]


def resolved(text: str, *, stop: tuple[str, ...] = (), max_tokens: int | None = None, **more: Any) -> ResolvedRequest:
    sampling = Sampling(
        max_tokens=256 if max_tokens is None else max_tokens,
        max_tokens_given=max_tokens is not None,
        temperature=0.0,
        stop=stop,
    )
    messages = (Message("user", text),)
    request = ChatRequest(dialect="workers_ai", model=MODEL, messages=messages, sampling=sampling, **more)
    return ResolvedRequest(request, Identity("a" * 32, "t", frozenset()), MODEL, None, "log")


def wishing(request: ResolvedRequest, **wish: Any) -> ResolvedRequest:
    """The request with other sampling."""
    sampling = msgspec.structs.replace(request.request.sampling, **wish)
    return msgspec.structs.replace(request, request=msgspec.structs.replace(request.request, sampling=sampling))


async def answer(backend: Backend, request: ResolvedRequest) -> list[Chunk]:
    async with aclosing(backend.generate(request)) as chunks:
        return [chunk async for chunk in chunks]


def text_of(chunks: list[Chunk]) -> str:
    return "".join(chunk.text for chunk in chunks)


class Conformance:
    """Inherit, and define an async fixture `harness`."""

    async def test_the_last_chunk_says_how_it_ended(self, harness: Harness) -> None:
        chunks = await answer(harness.backend, resolved(harness.question))
        assert text_of(chunks)  # in however many pieces: what waits for a slow reader is joined
        assert all(chunk.finish_reason is None and chunk.usage is None and chunk.text for chunk in chunks[:-1])
        last = chunks[-1]
        assert last.finish_reason == "stop"
        assert last.usage is not None
        assert last.usage.prompt_tokens > 0
        assert 0 < last.usage.completion_tokens <= 256
        await harness.idle()

    async def test_max_tokens_ends_it(self, harness: Harness) -> None:
        whole = text_of(await answer(harness.backend, resolved(harness.question)))
        chunks = await answer(harness.backend, resolved(harness.question, max_tokens=2))
        last = chunks[-1]
        assert last.finish_reason == "length"
        assert last.usage is not None
        assert last.usage.completion_tokens == 2
        assert whole.startswith(text_of(chunks))

    async def test_greedy_answers_repeat_and_do_not_mix(self, harness: Harness) -> None:
        questions = [harness.question + " again" * count for count in range(6)]
        alone = [text_of(await answer(harness.backend, resolved(question))) for question in questions]
        together = await asyncio.gather(*(answer(harness.backend, resolved(question)) for question in questions))
        assert [text_of(chunks) for chunks in together] == alone
        await harness.idle()

    async def test_a_prompt_is_counted_as_it_is_sent(self, harness: Harness) -> None:
        request = resolved(harness.question)
        usage = (await answer(harness.backend, request))[-1].usage
        assert usage is not None
        assert await harness.backend.count_tokens(request.request) == usage.prompt_tokens

    async def test_a_stop_string_is_never_shown(self, harness: Harness) -> None:
        whole = text_of(await answer(harness.backend, resolved(harness.question)))
        stop = whole[len(whole) // 2 : len(whole) // 2 + 4]
        chunks = await answer(harness.backend, resolved(harness.question, stop=(stop, "never said")))
        assert text_of(chunks) == whole[: whole.index(stop)]
        assert chunks[-1].stop_string == stop
        last = chunks[-1]
        assert last.finish_reason == "stop"
        assert last.usage is not None
        assert last.usage.completion_tokens > 0
        await harness.idle()

    async def test_several_choices(self, harness: Harness) -> None:
        one = await answer(harness.backend, resolved(harness.question))
        chunks = await answer(harness.backend, wishing(resolved(harness.question), n=3))
        for index in range(3):
            mine = [chunk for chunk in chunks if chunk.index == index]
            assert text_of(mine) == text_of(one)
            assert [chunk.finish_reason is not None for chunk in mine] == [False] * (len(mine) - 1) + [True]
        assert [chunk.usage is not None for chunk in chunks] == [False] * (len(chunks) - 1) + [True]
        usage, alone = chunks[-1].usage, one[-1].usage
        assert usage is not None
        assert alone is not None
        assert usage.prompt_tokens == alone.prompt_tokens
        assert usage.completion_tokens == 3 * alone.completion_tokens
        await harness.idle()

    async def test_leaving_ends_every_choice(self, harness: Harness) -> None:
        for seen in range(4):
            chunks = harness.backend.generate(wishing(resolved(harness.question), n=8))
            for _ in range(seen):
                await anext(chunks)
            await chunks.aclose()
            await harness.idle()

    async def test_log_probabilities_belong_to_the_text(self, harness: Harness) -> None:
        chunks = await answer(harness.backend, wishing(resolved(harness.question), top_logprobs=2))
        tokens = [token for chunk in chunks for token in chunk.logprobs or ()]
        assert b"".join(token.data for token in tokens).decode() == text_of(chunks)
        assert all(token.logprob <= 0 for token in tokens)
        assert all(token.top[0].data == token.data for token in tokens)  # greedy
        plain = await answer(harness.backend, resolved(harness.question))
        assert all(chunk.logprobs is None for chunk in plain)
        await harness.idle()

    async def test_a_prompt_above_the_window(self, harness: Harness) -> None:
        for words in (harness.window + 1, 100 * harness.window):
            with pytest.raises(ContextExceeded, match=str(harness.window)):
                await answer(harness.backend, resolved("x " * words))
        await harness.idle()

    async def test_max_tokens_above_the_window(self, harness: Harness) -> None:
        with pytest.raises(ContextExceeded, match=str(harness.window)) as refused:
            await answer(harness.backend, resolved(harness.question, max_tokens=harness.window))
        assert refused.value.param == "max_tokens"
        await harness.idle()

    async def test_the_default_of_max_tokens_is_cut_to_what_is_left(self, harness: Harness) -> None:
        """A prompt that leaves less than 256 tokens is answered, as long as there is room for one."""
        low, high = 1, harness.window
        while high - low > 1:  # the longest prompt that is accepted
            middle = (low + high) // 2
            try:
                await answer(harness.backend, resolved("x " * middle, max_tokens=1))
                low = middle
            except ContextExceeded:
                high = middle
        chunks = await answer(harness.backend, resolved("x " * low))
        usage = chunks[-1].usage
        assert usage is not None
        assert usage.total_tokens <= harness.window
        assert usage.completion_tokens < 256
        await harness.idle()

    async def test_closing_early_frees_everything(self, harness: Harness) -> None:
        for _ in range(3):
            chunks = harness.backend.generate(resolved(harness.question))
            await anext(chunks)
            await chunks.aclose()
        await harness.idle()

    async def test_cancelling_frees_everything(self, harness: Harness) -> None:
        started = asyncio.Event()

        async def listen(chunks: AsyncGenerator[Chunk, None]) -> None:
            async with aclosing(chunks):
                async for _ in chunks:
                    started.set()
                    await asyncio.sleep(60)

        task = asyncio.ensure_future(listen(harness.backend.generate(resolved(harness.question))))
        async with asyncio.timeout(20):
            await started.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await harness.idle()

    async def test_never_started_holds_nothing(self, harness: Harness) -> None:
        await harness.backend.generate(resolved(harness.question)).aclose()
        await harness.idle()

    async def test_adapters_and_readiness(self, harness: Harness) -> None:
        assert harness.backend.ready() is None
        assert await harness.backend.adapter_statuses(["0" * 64]) == {}
        await harness.backend.prefetch(AdapterRef("0" * 64, "adapters/none", 1, 8, "f"))
        await harness.backend.forget("0" * 64)
        assert await harness.backend.adapter_statuses(["0" * 64]) == {}
