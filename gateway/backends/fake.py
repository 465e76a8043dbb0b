"""A backend inside this process, for tests and for trying the HTTP side without a model: it repeats what it is told.

By default the answer is the words of the last message (or the prompt), a chunk per word, a "token" per word. A script
replaces the words, an error in the script is raised at its place, and a `gate` holds the answer back until it is set.
What a backend must free is countable here: `open` requests, `closed` ones that did not reach their end.
"""

import asyncio
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from contextlib import aclosing

from gateway.backends.choices import side_by_side
from gateway.errors import ContextExceeded, LorikeetError, OverCapacity
from gateway.messages import ChatRequest, Chunk, ResolvedRequest, ScoredText, TokenLogprob, Usage
from gateway.text.detokenizer import StopStrings
from runtime.protocol import AdapterRef, AdapterStatus, SequenceTiming, TierVisit

Script = Sequence[str | LorikeetError | asyncio.Event]


class FakeBackend:
    """`script` gives the pieces for a request; an Event among them is waited for before the next piece."""

    def __init__(
        self,
        script: Callable[[ResolvedRequest], Script] | None = None,
        *,
        context_window: int = 1024,
        max_open: int = 1000,
        problem: str | None = None,
    ) -> None:
        self._script = script or _echo
        self._context_window = context_window
        self._max_open = max_open
        self._statuses: dict[str, AdapterStatus] = {}
        self.problem = problem
        self.open = 0
        self.closed = 0
        self.requests: list[ResolvedRequest] = []
        self.changed = asyncio.Condition()

    async def generate(self, request: ResolvedRequest) -> AsyncGenerator[Chunk, None]:
        """See `Backend.generate`."""
        if self.open >= self._max_open:
            raise OverCapacity("Capacity temporarily exceeded, please try again.", retry_after_s=1)
        num_prompt = await self.count_tokens(request.request)
        wanted = request.request.sampling
        room = self._context_window - num_prompt
        if room < 1 or (wanted.max_tokens_given and wanted.max_tokens > room):
            raise ContextExceeded(
                f"{num_prompt} tokens and max_tokens exceed the context window of {self._context_window}",
                param="max_tokens",
            )
        self.open += 1
        self.requests.append(request)
        await self._tell()
        done = False
        sources = [self._pieces(request, num_prompt, min(wanted.max_tokens, room)) for _ in range(wanted.n)]
        try:
            async with aclosing(sources[0] if wanted.n == 1 else side_by_side(sources)) as chunks:
                async for chunk in chunks:
                    done = chunk.usage is not None
                    yield chunk
        except LorikeetError:
            done = True
            raise
        finally:
            self.open -= 1
            self.closed += not done
            await self._tell()

    async def count_tokens(self, asked: ChatRequest) -> int:
        """See `Backend.count_tokens`."""
        return len(_prompt(asked).split())

    async def _pieces(self, request: ResolvedRequest, num_prompt: int, max_tokens: int) -> AsyncGenerator[Chunk, None]:
        stops = StopStrings(request.request.sampling.stop)
        num_tokens = 0
        for piece in self._script(request):
            if isinstance(piece, asyncio.Event):
                await piece.wait()
                continue
            if isinstance(piece, LorikeetError):
                raise piece
            num_tokens += 1
            await asyncio.sleep(0)
            text = stops.push(piece)
            if text:
                yield Chunk(text, logprobs=_certain(piece, request.request.sampling.top_logprobs))
            if stops.matched or num_tokens == max_tokens:
                break
        reason = "stop" if stops.matched or num_tokens < max_tokens else "length"
        usage = Usage(num_prompt, num_tokens)
        timing = SequenceTiming(batch_rows=1)
        yield Chunk(stops.flush(), "stop" if reason == "stop" else "length", usage, timing, stop_string=stops.met)

    async def _tell(self) -> None:
        async with self.changed:
            self.changed.notify_all()

    async def until(self, condition: Callable[[], bool], timeout_s: float = 10.0) -> None:
        """Waits until something here has become true. Raises TimeoutError."""
        async with asyncio.timeout(timeout_s), self.changed:
            await self.changed.wait_for(condition)

    async def adapter_statuses(self, digests: Sequence[str]) -> Mapping[str, AdapterStatus]:
        """See `Backend.adapter_statuses`."""
        return {digest: self._statuses[digest] for digest in digests if digest in self._statuses}

    async def prefetch(self, adapter: AdapterRef) -> None:
        """See `Backend.prefetch`."""
        visits = (TierVisit("memory", 0.0, adapter.size_bytes),)
        self._statuses[adapter.digest] = AdapterStatus(adapter.digest, "memory", visits)

    async def forget(self, digest: str) -> None:
        """See `Backend.forget`."""
        self._statuses.pop(digest, None)

    def ready(self) -> str | None:
        """See `Backend.ready`."""
        return self.problem


def _certain(word: str, top_logprobs: int | None) -> tuple[TokenLogprob, ...] | None:
    """What is repeated has no alternative."""
    if top_logprobs is None:
        return None
    only = ScoredText(word, word.encode(), 0.0)
    return (TokenLogprob(only.text, only.data, only.logprob, (only,) if top_logprobs else ()),)


def _prompt(asked: ChatRequest) -> str:
    return asked.prompt if asked.prompt is not None else " ".join(m.content for m in asked.messages or ())


def _echo(request: ResolvedRequest) -> list[str]:
    asked = request.request
    text = asked.prompt if asked.prompt is not None else (asked.messages or ())[-1].content
    words = text.split(" ")
    return [word if index == 0 else " " + word for index, word in enumerate(words)]
