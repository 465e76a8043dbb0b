"""Our side as it serves: a runtime process of its own behind its socket, spoken to with `runtime.client`.

`load` runs a closed loop: `concurrency` callers, each of whom sends its next request when its answer has ended, until
all requests are done. Requests are spread over four accounts. What a caller sees is measured: seconds to the first
token, and seconds between tokens. CPU seconds are the runtime's.
"""

import argparse
import asyncio
import contextlib
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from infra.bench.busy import Clocks
from infra.bench.child import serve
from infra.bench.children import THREADS
from infra.bench.folders import adapter_refs
from runtime.client import RuntimeClient
from runtime.config import RuntimeConfig
from runtime.protocol import AdapterRef, SamplingParams

NUM_ACCOUNTS = 4
TOKEN = "bench"
Request = tuple[int, list[int], str | None]


class ServiceChild:
    """Speaks to the runtime process `runtime`, which listens on `socket_path`."""

    def __init__(self, socket_path: str, folder: Path, runtime: "subprocess.Popen[bytes]") -> None:
        self._socket_path, self._refs, self._runtime = socket_path, adapter_refs(folder), runtime

    def load(
        self, prompts: list[list[int]], adapters: list[str | None], tokens: int, concurrency: int
    ) -> dict[str, Any]:
        """Seconds of the whole, tokens of all answers, and the callers' waits."""
        if self._runtime.poll() is not None:
            raise RuntimeError(f"the runtime ended with code {self._runtime.returncode}")
        return asyncio.run(self._load(list(zip(prompts, adapters, strict=True)), tokens, concurrency))

    async def _load(self, jobs: list[tuple[list[int], str | None]], tokens: int, concurrency: int) -> dict[str, Any]:
        requests: Iterator[Request] = ((number, *job) for number, job in enumerate(jobs))
        first_s: list[float] = []
        gaps_s: list[float] = []
        client = RuntimeClient(socket_path=self._socket_path, token=TOKEN, gateway_id="bench")
        async with client:
            await client.wait_ready(30.0)
            before = Clocks.read(self._runtime.pid)
            async with asyncio.TaskGroup() as callers:
                for _ in range(concurrency):
                    callers.create_task(self._caller(client, requests, tokens, first_s, gaps_s))
            after = Clocks.read(self._runtime.pid)
        return {
            "seconds": after.wall - before.wall,
            "cpu_s": after.tree - before.tree,
            "tokens": tokens * len(jobs),
            "first_s": first_s,
            "gaps_s": gaps_s,
        }

    async def _caller(
        self, client: RuntimeClient, requests: Iterator[Request], tokens: int, first_s: list[float], gaps_s: list[float]
    ) -> None:
        sampling = SamplingParams(max_tokens=tokens, temperature=0.0, ignore_eos=True)
        for number, prompt, adapter in requests:
            ref: AdapterRef | None = None if adapter is None else self._refs[adapter]
            account, last, count = f"account-{number % NUM_ACCOUNTS}", time.perf_counter(), 0
            outputs = client.submit(
                account_id=account, token_ids=prompt, sampling=sampling, adapter=ref, timeout_s=600.0
            )
            async with contextlib.aclosing(outputs):
                async for output in outputs:
                    if output.failure is not None:
                        raise RuntimeError(output.failure.message)
                    now, new = time.perf_counter(), len(output.token_ids)
                    if not new:
                        continue
                    (gaps_s if count else first_s).append(now - last)
                    gaps_s.extend([0.0] * (new - 1))  # merged on the way: they were seen together
                    last, count = now, count + new
            if count != tokens:
                raise RuntimeError(f"an answer of {count} tokens where {tokens} were asked")


@contextlib.contextmanager
def runtime_process(folder: Path, dtype: str, work: Path) -> Iterator[tuple[str, "subprocess.Popen[bytes]"]]:
    """Starts a runtime on the folder; yields its socket and the process, which ends with the block."""
    config = RuntimeConfig(
        model=folder.name,
        model_folder=str(folder / "model"),
        dtype=dtype,  # type: ignore[arg-type]  # one of its three, checked by the runtime
        threads=THREADS,
        kv_bytes=1024**3,
        socket_path=str(work / "r.sock"),
        token=TOKEN,
        objects_root=str(folder / "packed"),
        tier_dir=str(work / "tier"),
    )
    process = subprocess.Popen([sys.executable, "-m", "runtime"], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        process.stdin.write(config.to_json() + b"\n")
        process.stdin.flush()
        if not any(line.strip() == b"ready" for line in process.stdout):
            raise RuntimeError(f"the runtime does not start: code {process.wait(10)}")
        yield config.socket_path, process
    finally:
        process.stdin.close()  # its lifeline
        process.wait(10)


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("dtype")
    options = parser.parse_args()
    with (
        tempfile.TemporaryDirectory(prefix=f"lorikeet-bench-{os.getpid()}-") as work,
        runtime_process(options.folder, options.dtype, Path(work)) as (socket_path, process),
    ):
        serve({"load": ServiceChild(socket_path, options.folder, process).load})
