"""Do all parts of this deployment fit into the machine together? Decided before any weights are loaded.

    machine >= gateway + request bodies + log buffer + for each runtime here: weights + adapter pool + working memory
                                                       + keys and values + memory tier of adapters

Arithmetic only; `machine_memory.py` knows the limit. On a card the runtime divides the card's memory itself, when it
sees how much is free; its host memory is counted here, and shares of the card are added up.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from gateway.catalog import ALIASES
from gateway.settings import Memory, Runtime, Settings
from runtime.errors import ConfigInvalid
from runtime.memory_plan import CUDA_PROCESS_BYTES, Limits, Needs, Split, in_words, needs_of, share_out
from runtime.model_size import ModelSize

# The gateway's own process: interpreter, libraries, tokenizers, bounded caches (measured: 110 MB and growing slowly).
GATEWAY_BYTES: Final = 200 * 1024**2
AUTO_SHARE: Final = 0.7
AUTO_CARD_SHARE: Final = 0.9
LARGEST_AUTO_TIER: Final = 2 * 1024**3
SMALLEST_AUTO_TIER: Final = 64 * 1024**2
_BODIES: Final = "request bodies"
_LOG: Final = "log buffer"


class MemoryExceeded(Exception):
    """The settings ask for more memory than there is; the text lists the parts and the setting to lower."""


@dataclass(frozen=True)
class RuntimeMemory:
    """One runtime's part. On a card `host.kv` is 0 and `card` (bytes or share) is what it may take there."""

    host: Split
    kv_bytes: int
    tier_bytes: int
    card: float

    def __str__(self) -> str:
        """For the log."""
        card = "" if self.host.kv else f" on the host; of the card {self.card}"
        return f"{self.host}{card}; adapters in memory {in_words(self.tier_bytes)}"


def plan_memory(
    settings: Settings, folders: Mapping[str, Path], machine: int, *, with_gateway: bool = True
) -> dict[str, RuntimeMemory]:
    """What each runtime of this machine gets; without the gateway's parts when that is elsewhere.

    Raises MemoryExceeded, and ModelInvalid for a folder without readable weights.
    """
    gateway = _gateway_parts(settings) if with_gateway else {}
    fair_tier = min(LARGEST_AUTO_TIER, machine // 8 // max(1, len(folders)))
    tier = settings.tiers.memory_bytes or max(SMALLEST_AUTO_TIER, fair_tier)
    if settings.runtime.device == "cuda":
        cards = _cards(settings, folders)
        host = Split(0, 0, CUDA_PROCESS_BYTES, 0)
        runtimes = {model: RuntimeMemory(host, settings.runtime.kv_bytes or 0, tier, cards[model]) for model in folders}
    else:
        room = int(AUTO_SHARE * machine) - sum(gateway.values()) - tier * len(folders)
        splits = _splits(settings, folders, room, machine)
        runtimes = {model: RuntimeMemory(split, split.kv, tier, AUTO_CARD_SHARE) for model, split in splits.items()}
    _check_sum(settings, gateway, runtimes, machine)
    return runtimes


def _splits(settings: Settings, folders: Mapping[str, Path], room: int, machine: int) -> dict[str, Split]:
    """Runtimes that say what they want get that; the others divide what is left of `room`."""
    limits = _limits(settings.runtime)
    needs = {model: needs_of(ModelSize.from_folder(folder), limits) for model, folder in folders.items()}
    splits: dict[str, Split] = {}
    for model, need in needs.items():
        asked = _memory_of(settings, model)
        try:
            if settings.runtime.kv_bytes is not None:
                splits[model] = need.with_kv(settings.runtime.kv_bytes)
            elif asked != "auto":
                splits[model] = need.within(int(asked * machine) if isinstance(asked, float) else asked)
        except ConfigInvalid as error:
            raise MemoryExceeded(f"[runtime] memory of {model}: {error}") from error
    left = [model for model in needs if model not in splits]
    room -= sum(split.total for split in splits.values()) + sum(needs[model].fixed for model in left)
    shares = share_out(room, [_wants(needs[model]) for model in left])
    return splits | {
        model: needs[model].with_kv(share // needs[model].block * needs[model].block)
        for model, share in zip(left, shares, strict=True)
    }


def _wants(need: Needs) -> tuple[int, int]:
    return need.least, max(need.least, need.most)


def _cards(settings: Settings, folders: Mapping[str, Path]) -> dict[str, float]:
    asked = {model: _memory_of(settings, model) for model in folders}
    shares = sum(part for part in asked.values() if isinstance(part, float))
    autos = sum(part == "auto" for part in asked.values())
    left = AUTO_CARD_SHARE - shares
    if shares > 1 or (autos and left <= 0):
        raise MemoryExceeded(
            f"the runtimes take {shares:.2f} of the card's memory{' and nothing is left for others' if autos else ''}; "
            "lower runtime.memory, or memory of single models"
        )
    return {model: left / autos if part == "auto" else part for model, part in asked.items()}


def _check_sum(
    settings: Settings, gateway: Mapping[str, int], runtimes: Mapping[str, RuntimeMemory], machine: int
) -> None:
    """Raises MemoryExceeded with one sentence: every part, and the setting whose lowering helps most."""
    total = sum(gateway.values()) + sum(runtime.host.total + runtime.tier_bytes for runtime in runtimes.values())
    if total <= machine:
        return
    parts = [
        *(f"{name} {in_words(size)}" for name, size in gateway.items()),
        *(f"runtime {model} {in_words(one.host.total + one.tier_bytes)} ({one})" for model, one in runtimes.items()),
    ]
    lowerable = {
        "server.body_buffer_bytes": gateway.get(_BODIES, 0),
        "logs.buffer_bytes": gateway.get(_LOG, 0),
        "tiers.memory_bytes": sum(one.tier_bytes for one in runtimes.values()),
        _kv_setting(settings): sum(one.host.kv for one in runtimes.values()),
        "runtime.adapter_rows": sum(one.host.adapters for one in runtimes.values()),
    }
    setting = max(lowerable, key=lambda name: lowerable[name])
    advice = f"lower {setting}"
    if total - sum(lowerable.values()) > machine:
        advice = "serve fewer or smaller bases, or take a machine with more memory"
    raise MemoryExceeded(
        f"this deployment would take {in_words(total)} of memory and the machine (or its container) has "
        f"{in_words(machine)}: {'; '.join(parts)}; {advice}"
    )


def _kv_setting(settings: Settings) -> str:
    return "runtime.memory" if settings.runtime.kv_bytes is None else "runtime.kv_bytes"


def _gateway_parts(settings: Settings) -> dict[str, int]:
    return {
        "gateway": GATEWAY_BYTES, _BODIES: settings.server.body_buffer_bytes, _LOG: settings.logs.buffer_bytes,
    }  # fmt: skip


def _memory_of(settings: Settings, model: str) -> Memory:
    named = {ALIASES.get(name, name): one for name, one in settings.models.items()}.get(model)
    return settings.runtime.memory if named is None or named.memory is None else named.memory


def _limits(runtime: Runtime) -> Limits:
    return Limits(
        dtype=runtime.dtype,
        block_tokens=runtime.block_tokens,
        adapter_rows=runtime.adapter_rows,
        max_running=runtime.max_running,
        step_tokens=runtime.step_tokens,
    )
