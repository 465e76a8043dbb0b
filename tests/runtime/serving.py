"""A runtime service in this process: real socket, real engine thread, real tiers over a folder; the device is fake."""

import asyncio
import contextlib
import hashlib
import io
import threading
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from runtime.adapter import Loads
from runtime.batch import Batch
from runtime.client import RuntimeClient
from runtime.config import RuntimeConfig
from runtime.engine import Engine, EngineLimits
from runtime.listen import bind
from runtime.protocol import AdapterRef, SamplingParams, SequenceOutput, Stats
from runtime.service import RuntimeService
from storage.objects.base import ObjectStore, single
from storage.objects.local import LocalObjects
from storage.packed import LoraMatrices, Packed, write_packed
from storage.tiers import Tiers
from tests.runtime.fakes import GEOMETRY, MODEL, FakeRunner

TOKEN = "s3cret"


@dataclass
class GatedRunner(FakeRunner):
    """After `free_steps` steps it waits for the gate, so that a test can look at a sequence in mid-flight."""

    gate: threading.Event = field(default_factory=threading.Event)
    free_steps: int = 0
    names: dict[bytes, str] = field(default_factory=dict)

    def execute(self, batch: Batch) -> list[int]:
        if self.free_steps > 0:
            self.free_steps -= 1
        else:
            assert self.gate.wait(30)
        return super().execute(batch)

    def write_adapter(self, slot: int, row_offset: int, packed: Packed, first_layer: int, num_layers: int) -> None:
        name = self.names[hashlib.sha256(packed.payload).digest()]
        named = Packed(packed.header, memoryview(name.encode()))
        super().write_adapter(slot, row_offset, named, first_layer, num_layers)


@dataclass
class Serving:
    """What runs, and what tests do with it."""

    folder: Path
    runner: GatedRunner
    service: RuntimeService
    objects: LocalObjects
    stop: asyncio.Event
    task: asyncio.Task[None]
    address: tuple[str, int] | None

    @property
    def socket_path(self) -> Path:
        return self.folder / "run" / "r.sock"

    def client(self, **options: Any) -> RuntimeClient:
        return RuntimeClient(**{"socket_path": self.socket_path, "token": TOKEN, "gateway_id": "g", **options})

    async def stats(self) -> Stats:
        """Asked of the engine thread itself."""
        loop, answer = asyncio.get_running_loop(), asyncio.get_running_loop().create_future()
        self.service._thread.post(lambda engine: _set(loop, answer, engine.stats()))
        async with asyncio.timeout(10):
            stats: Stats = await answer
        return stats

    async def until(self, **expected: int) -> Stats:
        """Waits until the engine's stats are these."""
        async with asyncio.timeout(10):
            while True:
                stats = await self.stats()
                if all(getattr(stats, name) == value for name, value in expected.items()):
                    return stats
                await asyncio.sleep(0.005)

    async def upload(self, fill: float, rank: int = 8) -> AdapterRef:
        """A real packed adapter in the object store."""
        rng = np.random.default_rng(int(fill * 1000))
        matrices = [
            LoraMatrices(layer, "q_proj", 1.0, rng.random((rank, 8), np.float32), rng.random((8, rank), np.float32))
            for layer in range(GEOMETRY.num_layers)
        ]
        out = io.BytesIO()
        header = write_packed(out, GEOMETRY, "float32", matrices)
        data = out.getvalue()
        digest = hashlib.sha256(data).hexdigest()
        self.runner.names[hashlib.sha256(data[len(data) - header.payload_bytes :]).digest()] = digest
        await self.objects.put(f"adapters/{digest}", single(data), max_bytes=len(data))
        return AdapterRef(digest, f"adapters/{digest}", len(data), rank, f"finetune-{digest[:6]}")


def _set(loop: asyncio.AbstractEventLoop, answer: "asyncio.Future[Stats]", stats: Stats) -> None:
    loop.call_soon_threadsafe(lambda: None if answer.done() else answer.set_result(stats))


@contextlib.asynccontextmanager
async def serving(
    folder: Path,
    *,
    limits: dict[str, Any] | None = None,
    tcp: bool = False,
    tier_options: dict[str, Any] | None = None,
    tier_objects: ObjectStore | None = None,
    **options: Any,
) -> AsyncIterator[Serving]:
    """Starts a service and stops it at the end. `tier_objects`: where adapters come from, if not from the folder."""
    runner = GatedRunner(num_blocks=256, num_rows=64)
    runner.gate.set()
    engine_limits = EngineLimits(256, runner.block_tokens, 64, **(limits or {}))

    def make_engine(loads: Loads) -> Engine:
        return Engine(runner, MODEL, engine_limits, loads, time.monotonic)

    objects = LocalObjects(folder / "objects")
    budgets = {"memory_bytes": 2**20, "disk_bytes": 2**20, **(tier_options or {})}
    tiers = Tiers(tier_objects or objects, folder / "tier", **budgets)
    await tiers.open()
    options = {"token": TOKEN, "drain_s": 5.0, **options}
    service = RuntimeService(make_engine, time.monotonic, MODEL, tiers, **options)
    config = RuntimeConfig(
        model=MODEL.name,
        model_folder="-",
        tier_dir="-",
        objects_root="-",
        socket_path="" if tcp else str(folder / "run" / "r.sock"),
        host="127.0.0.1" if tcp else "",
        token=TOKEN,
    )
    stop, ready = asyncio.Event(), asyncio.Event()
    address: list[tuple[str, int]] = []

    async def run() -> None:
        with bind(config) as listener:
            if tcp:
                address.append(listener.getsockname())
            await service.run(listener, stop, ready.set)

    task = asyncio.create_task(run())
    try:
        async with asyncio.timeout(10):
            await ready.wait()
        yield Serving(folder, runner, service, objects, stop, task, address[0] if tcp else None)
    finally:
        runner.gate.set()
        stop.set()
        await asyncio.gather(task, return_exceptions=True)
        await tiers.aclose()
        await objects.aclose()


def sampling(max_tokens: int = 4, seed: int = 7) -> SamplingParams:
    return SamplingParams(max_tokens=max_tokens, seed=seed)


async def ask(client: RuntimeClient, **request: Any) -> tuple[list[int], SequenceOutput]:
    """A whole answer: (tokens, last output)."""
    request = {"account_id": "a", "token_ids": (1, 2, 3), "sampling": sampling(), **request}
    tokens: list[int] = []
    async with asyncio.timeout(20), contextlib.aclosing(client.submit(**request)) as outputs:
        async for output in outputs:
            tokens += output.token_ids
    return tokens, output
