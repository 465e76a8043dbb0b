"""One runtime process: reads its configuration, loads the model, serves, and leaves nothing behind.

    python -m runtime                   first line of standard input is the configuration (JSON, `RuntimeConfig`); the
                                        pipe then stays open as a lifeline: at its end the process leaves at once
    python -m runtime --config FILE     the same from a file, without a lifeline

On standard output: lines about the progress of loading, then "ready" alone on a line. Diagnostics go to standard
error. SIGTERM and SIGINT drain; a second one leaves at once. Exit codes: 0 after draining, 78 when settings or weights
cannot be used (starting again is no use), 1 for everything else.
"""

import argparse
import asyncio
import contextlib
import functools
import logging
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from runtime.adapter import Loads
from runtime.collector import settle
from runtime.config import RuntimeConfig
from runtime.engine import Engine, EngineLimits
from runtime.errors import ConfigInvalid, EngineStopped, ModelInvalid, RuntimeFault
from runtime.grammars.cache import GrammarCache
from runtime.grammars.constraint import Prepared
from runtime.listen import bind
from runtime.memory_plan import Limits, needs_of
from runtime.model_size import ModelSize
from runtime.own_thread import in_own_thread
from runtime.pinned import pinned
from runtime.protocol import EXIT_CONFIG, Grammar, ModelInfo
from runtime.service import RuntimeService
from runtime.slots import SlotPool
from runtime.tracing import SequenceSpans, make_tracer
from storage.downloads import Downloads
from storage.errors import StorageError
from storage.objects.base import ObjectStore
from storage.objects.local import LocalObjects
from storage.objects.s3 import S3Objects
from storage.tiers import Tiers

if TYPE_CHECKING:
    from runtime.device_runner import DeviceRunner, DeviceSizes

logger = logging.getLogger(__name__)

T = TypeVar("T")


def main(argv: list[str] | None = None) -> None:
    """Entry point of `python -m runtime`; ends the process with the exit codes above."""
    began = time.monotonic()
    parser = argparse.ArgumentParser(prog="python -m runtime", description="Serve one base model to gateways.")
    parser.add_argument("--config", type=Path, help="JSON file; default: one line on standard input")
    path = parser.parse_args(argv).config
    logging.basicConfig(level=logging.INFO, stream=sys.stderr, format="%(levelname)s %(name)s: %(message)s")
    try:
        config = RuntimeConfig.from_json(_configuration(path))
        if path is None:
            _follow_parent(config)
        asyncio.run(_run(config, began))
    except (ConfigInvalid, ModelInvalid) as error:
        _leave(f"runtime: {error}", EXIT_CONFIG)
    except (RuntimeFault, StorageError) as error:
        _leave(f"runtime: {error}", 1)
    # The engine's thread may be inside a step that never ends, and interpreter shutdown would wait for torch's pool.
    _leave("", 0)


def _configuration(path: Path | None) -> bytes:
    if path is None:
        line = sys.stdin.buffer.readline()
        if not line.strip():
            raise ConfigInvalid("no configuration on standard input; give one line of JSON or --config FILE")
        return line
    try:
        return path.read_bytes()
    except OSError as error:
        raise ConfigInvalid(f"{path} cannot be read: {error.strerror}") from error


def _follow_parent(config: RuntimeConfig) -> None:
    """Leaves as soon as standard input ends. A thread of its own: it works while weights load and steps hang."""

    def wait() -> None:
        with contextlib.suppress(OSError):
            while os.read(sys.stdin.fileno(), 4096):
                pass
        if config.socket_path:
            Path(config.socket_path).unlink(missing_ok=True)
        os._exit(1)

    threading.Thread(target=wait, name="lifeline", daemon=True).start()


def _leave(message: str, code: int) -> None:
    if message:
        print(message, file=sys.stderr)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


async def _run(config: RuntimeConfig, began: float) -> None:
    try:
        # torch takes a second to import: bad settings are told before
        from runtime.device_runner import DeviceRunner, DeviceSizes
        from runtime.runner import TorchRunner, free_card_bytes
    except ModuleNotFoundError as error:
        raise ConfigInvalid(
            f"{error.name} is not installed; a runtime needs: pip install 'lorikeet[runtime]'"
        ) from error

    stop = asyncio.Event()
    _stop_on_signals(stop)
    folder = Path(config.model_folder)
    dtype = ModelSize.from_folder(folder).dtype if config.dtype == "auto" else config.dtype
    max_slots = SlotPool(config.adapter_rows).max_slots
    kv_bytes = config.kv_bytes or _kv_on_card(config, free_card_bytes(config.device))
    load: Callable[[], TorchRunner | DeviceRunner]
    if config.device == "cuda":
        sizes = DeviceSizes(kv_bytes, config.block_tokens, config.adapter_rows, max_slots, config.max_running)
        load = functools.partial(_load_on_card, folder, sizes, config.device, dtype, _Progress(config.model))
    else:
        load = functools.partial(
            TorchRunner.load,
            folder,
            device=config.device,
            dtype=dtype,
            threads=config.threads,
            kv_bytes=kv_bytes,
            block_tokens=config.block_tokens,
            adapter_rows=config.adapter_rows,
            max_slots=max_slots,
            progress=_Progress(config.model),
        )
    runner: TorchRunner | DeviceRunner = await _unless_stopped(in_own_thread(load, "loading"), stop)
    model = ModelInfo(
        name=config.model,
        dtype=dtype,
        device=config.device,
        num_parameters=runner.num_parameters,
        vocab_size=runner.vocab_size,
        max_sequence_tokens=runner.max_sequence_tokens,
        max_rank=config.adapter_rows,
        eos_token_ids=runner.eos_token_ids,
        geometry=runner.geometry,
    )
    limits = EngineLimits(
        num_blocks=runner.num_blocks,
        block_tokens=config.block_tokens,
        adapter_rows=config.adapter_rows,
        max_running=config.max_running,
        max_waiting=config.max_waiting,
        step_tokens=config.step_tokens,
        copy_bytes=config.copy_bytes,
        starve_after_s=config.starve_after_s,
        prefix_cache=config.prefix_cache,
    )
    tracer, shut_tracer = make_tracer(config.otlp_endpoint, config.sample_ratio)

    def make_engine(loads: Loads) -> Engine:
        return Engine(runner, model, limits, loads, time.monotonic)

    async with _tiers(config) as tiers:
        grammars, close_sandbox = _grammars(folder, model)
        service = RuntimeService(
            make_engine,
            time.monotonic,
            model,
            tiers,
            token=config.token,
            refill=config.tier_refill,
            spans=SequenceSpans(tracer, config.model),
            grammars=grammars,
            max_connections=config.max_connections,
            max_outgoing_bytes=config.max_outgoing_bytes,
            drain_s=config.drain_s,
            max_step_s=config.max_step_s,
            start_s=time.monotonic() - began,
        )
        try:
            with bind(config) as listener:
                settle()
                await service.run(listener, stop, lambda: _announce(listener))
        except EngineStopped as error:
            _leave(f"runtime: {error}", 1)
        finally:
            grammars.close()
            await asyncio.to_thread(close_sandbox)
            await asyncio.to_thread(shut_tracer)


def _load_on_card(
    folder: Path, sizes: "DeviceSizes", device: str, dtype: str, progress: Callable[[float], None]
) -> "DeviceRunner":
    """Loaded, and warm: what is compiled or captured for the first time would hold up the first requests."""
    from runtime.device_runner import DeviceRunner

    began = time.monotonic()
    runner = DeviceRunner.load(folder, sizes, device=device, dtype=dtype, progress=progress)
    loaded = time.monotonic()
    steps = runner.warm_up()
    seconds = time.monotonic() - loaded
    logger.info(
        "loaded in %.1f s; %d steps to warm up in %.1f s: %s", loaded - began, steps, seconds, runner.graphs.report
    )
    return runner


def _kv_on_card(config: RuntimeConfig, free: int) -> int:
    """What the runtime's part of the card leaves for keys and values. Raises ConfigInvalid, ModelInvalid."""
    part = config.card_memory
    split = needs_of(
        ModelSize.from_folder(Path(config.model_folder)),
        Limits(
            config.dtype, config.block_tokens, config.adapter_rows, config.max_running, config.step_tokens, on_card=True
        ),
    ).within(min(free, part) if isinstance(part, int) else int(free * part))
    logger.info("memory of %s on the card: %s", config.model, split)
    return split.kv


def _grammars(folder: Path, model: ModelInfo) -> tuple[GrammarCache, Callable[[], None]]:
    """What compiles grammars, elsewhere first, then here; and what ends the elsewhere, blocking."""
    from runtime.grammars.compiler import GrammarCompiler  # as torch: not before the settings are known to be sound
    from runtime.grammars.sandbox import Sandbox

    tokenizer, ends = folder / "tokenizer.json", model.eos_token_ids
    sandbox, compiler = Sandbox(tokenizer, model.vocab_size, ends), GrammarCompiler(tokenizer, model.vocab_size, ends)

    def compile_safely(grammar: Grammar) -> tuple[Prepared, int]:
        num_bytes = sandbox.try_out(grammar)
        return compiler.compile(grammar), num_bytes

    return GrammarCache(compile_safely, time.monotonic), sandbox.close


async def _unless_stopped(loading: Coroutine[None, None, T], stop: asyncio.Event) -> T:
    """The result of loading; leaves the process when it is told to stop meanwhile: there is nothing to drain yet."""
    load, stopped = asyncio.ensure_future(loading), asyncio.ensure_future(stop.wait())
    await asyncio.wait((load, stopped), return_when=asyncio.FIRST_COMPLETED)
    if not load.done():
        _leave("", 0)
    stopped.cancel()
    return await load


@contextlib.asynccontextmanager
async def _tiers(config: RuntimeConfig) -> AsyncIterator[Tiers]:
    objects: ObjectStore
    if config.objects == "local":
        objects = LocalObjects(Path(config.objects_root))
    else:
        objects = await S3Objects.open(
            bucket=config.bucket,
            endpoint=config.endpoint,
            region=config.region,
            access_key_id=config.access_key_id,
            secret_access_key=config.secret_access_key,
            max_attempts=1,  # `Downloads` asks again, and knows how often everybody together may
        )
    async with contextlib.AsyncExitStack() as stack:
        stack.push_async_callback(objects.aclose)
        tiers = Tiers(
            objects,
            Path(config.tier_dir),
            memory_bytes=config.tier_memory_bytes,
            disk_bytes=config.tier_disk_bytes,
            memory_policy=config.tier_memory_policy,
            disk_policy=config.tier_disk_policy,
            giants_share=config.tier_giants_share,
            negative_ttl_s=config.tier_negative_ttl_s,
            # A folder gives its bytes in one stream; over a network several connections are faster than one.
            downloads=Downloads(objects, parallel=1 if config.objects == "local" else config.tier_ranges),
            allocate=pinned(config.tier_memory_bytes).allocate if config.device == "cuda" else None,
        )
        await tiers.open()
        stack.push_async_callback(tiers.aclose)
        yield tiers


def _stop_on_signals(stop: asyncio.Event) -> None:
    def note() -> None:
        if stop.is_set():
            _leave("runtime: stopped without draining", 1)
        stop.set()

    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, note)


def _announce(listener: socket.socket) -> None:
    if listener.family != socket.AF_UNIX:
        host, port = listener.getsockname()[:2]
        print(f"listening on {host}:{port}")
    print("ready", flush=True)


class _Progress:
    """Prints the fraction of the weights that is loaded, in steps of a tenth."""

    def __init__(self, model: str) -> None:
        self._model, self._tenths = model, 0

    def __call__(self, fraction: float) -> None:
        tenths = int(fraction * 10)
        if tenths > self._tenths:
            self._tenths = tenths
            print(f"loading {self._model}: {tenths * 10} %", flush=True)
