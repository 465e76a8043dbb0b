"""Several answers to one request (`n`), as one stream of chunks.

Each choice is a generator of its own. They are pulled side by side by tasks that this generator owns: whatever ends it
(its end, a failed choice, a caller who left) cancels them, and waits until each has closed its source and so freed
what it holds. The queue between them holds one chunk a choice: a caller who reads slowly slows the pulling.
"""

import asyncio
import hashlib
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing

import msgspec

from gateway.errors import InternalError
from gateway.messages import Chunk, Usage
from runtime.protocol import SequenceTiming


async def side_by_side(sources: Sequence[AsyncGenerator[Chunk, None]]) -> AsyncGenerator[Chunk, None]:
    """Chunks as they come, each with its source's place as `index`; the last of all has the usage of all.

    Raises what the first failing source raises.
    """
    arrived: asyncio.Queue[Chunk | Exception] = asyncio.Queue(len(sources))

    async def pull(index: int, source: AsyncGenerator[Chunk, None]) -> None:
        try:
            async with aclosing(source):
                async for chunk in source:
                    await arrived.put(msgspec.structs.replace(chunk, index=index))
                    if chunk.finish_reason is not None:
                        return
            raise InternalError("the model's answer ended without an end; try again")
        except Exception as error:  # the reader of the queue raises it
            await arrived.put(error)

    tasks = [asyncio.create_task(pull(index, source)) for index, source in enumerate(sources)]
    try:
        ends: list[Chunk] = []
        while len(ends) < len(sources):
            chunk = await arrived.get()
            if isinstance(chunk, Exception):
                raise chunk
            if chunk.finish_reason is not None:
                ends.append(chunk)
                complete = len(ends) == len(sources)
                usage, timing = (_usage(ends), _timing(ends)) if complete else (None, None)
                chunk = msgspec.structs.replace(chunk, usage=usage, timing=timing)
            yield chunk
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)


def choice_seed(seed: int | None, index: int) -> int | None:
    """Every choice has a seed of its own; the first has the request's, so that it is the answer to n = 1."""
    if seed is None or index == 0:
        return seed
    digest = hashlib.blake2b(f"{seed}:{index}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


def _usage(ends: Sequence[Chunk]) -> Usage:
    """One prompt, counted once, as the first choice found it; the completions of all."""
    first = min(ends, key=lambda chunk: chunk.index).usage
    completion_tokens = sum(chunk.usage.completion_tokens for chunk in ends if chunk.usage)
    if first is None:
        return Usage(0, completion_tokens)
    return Usage(first.prompt_tokens, completion_tokens, first.cached_tokens)


def _timing(ends: Sequence[Chunk]) -> SequenceTiming | None:
    """That of the choice that took longest, with the first token of any."""
    timings = [chunk.timing for chunk in ends if chunk.timing is not None]
    if not timings:
        return None
    longest = max(timings, key=lambda timing: timing.total_s)
    return msgspec.structs.replace(longest, first_token_s=min(timing.first_token_s for timing in timings))
