"""Callers who leave while their adapter is on its way: through client, socket, engine and tiers to the object store."""

import asyncio
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest

from runtime.protocol import AdapterRef
from tests.runtime.serving import Serving, ask, serving
from tests.storage.gated_objects import GatedObjects


async def stored(running: Serving, objects: GatedObjects, fill: float) -> AdapterRef:
    """A packed adapter whose download stands before its gate."""
    adapter = await running.upload(fill)
    objects.data[adapter.object_key] = b"".join([chunk async for chunk in running.objects.get(adapter.object_key)])
    objects.hold(adapter.object_key)
    return adapter


async def leave(*tasks: asyncio.Task[Any]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


async def test_a_download_goes_on_for_one_caller_and_stops_with_the_last(tmp_path: Path) -> None:
    objects = GatedObjects()
    async with serving(tmp_path, tier_objects=objects) as running, running.client() as client, asyncio.timeout(20):
        await client.wait_ready(5)
        adapter = await stored(running, objects, 0.5)
        key = adapter.object_key
        await client.prefetch(adapter, soon=True)  # as the gateway does before it has the prompt's tokens
        callers = [asyncio.create_task(ask(client, adapter=adapter)) for _ in range(3)]
        await running.until(waiting=3)
        await objects.waiting[key].wait()
        await leave(*callers[:2])
        await running.until(waiting=1)
        assert objects.open_reads[key] == 1
        await leave(callers[2])
        while objects.open_reads[key]:
            await asyncio.sleep(0.001)
        assert objects.reads[key] == 1
        late = asyncio.create_task(ask(client, adapter=adapter))
        await running.until(waiting=1)
        objects.let(key)
        tokens, last = await late
        assert (len(tokens), last.finish_reason) == (4, "length")
        assert (objects.reads[key], objects.most_at_once[key]) == (2, 1)


@pytest.mark.parametrize("how", ["one by one", "with their connection"])
async def test_callers_who_have_left_hold_up_nobody(tmp_path: Path, how: str) -> None:
    """As many downloads as there may be at once, of adapters that nobody wants any more, and a store that hangs."""
    objects = GatedObjects()
    async with (
        serving(tmp_path, tier_objects=objects, limits={"max_leases": 2}) as running,
        running.client() as client,
        asyncio.timeout(20),
    ):
        await client.wait_ready(5)
        adapters = [await stored(running, objects, 0.1 * (n + 1)) for n in range(3)]
        objects.let(adapters[2].object_key)
        async with AsyncExitStack() as connection:
            other = await connection.enter_async_context(running.client(gateway_id="other"))
            await other.wait_ready(5)
            callers = [asyncio.create_task(ask(other, adapter=adapter)) for adapter in adapters[:2]]
            for adapter in adapters[:2]:
                await objects.waiting[adapter.object_key].wait()
            if how == "one by one":
                await leave(*callers)
            else:
                await connection.aclose()
                await asyncio.gather(*callers, return_exceptions=True)
            _, last = await ask(client, adapter=adapters[2])
            assert last.finish_reason == "length"
