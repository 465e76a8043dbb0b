"""`lorikeet cache simulate`: would another size or policy of the tiers have been better? Replays requests through the
server's own policy classes and draws miss ratios by size and policy for every tier, with a recommendation.

    --from logs                     what the log of the running gateway says (operator's socket)
    --from FILE                     JSON lines {"adapter": "...", "size_bytes": 80000000, "rank": 16}, in order
    --from zipf:ADAPTERS:EXPONENT:REQUESTS
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Final, NamedTuple

import typer

from gateway.commands.api import Api
from gateway.commands.cache import in_bytes
from gateway.commands.options import AsJson, CommandFailed, Config, DataDir, print_json, print_rows, settings_of
from gateway.memory_budget import SMALLEST_AUTO_TIER
from gateway.png_plot import write_png
from gateway.settings import DEMO_MODEL, Settings, adapter_limits
from storage.policies import POLICIES, PolicyName
from storage.simulation import (
    MAX_REPLAYED,
    Adapter,
    Point,
    Trace,
    budgets_for,
    curve,
    pass_through,
    through_device,
    zipf_trace,
)

DEFAULT_MEMORY_BYTES: Final = 2 * 1024**3
# A smaller tier is recommended when it misses at most a tenth more, or costs a request this much more on average.
GOOD_ENOUGH: Final = 1.1
HARDLY_S: Final = 0.002


class Costs(NamedTuple):
    """Seconds of one load from each tier, and whether they were measured here."""

    copy_s: float
    disk_s: float
    object_s: float
    measured: bool


def simulate(
    source: Annotated[str, typer.Option("--from", help="logs, a file, or zipf:ADAPTERS:EXPONENT:REQUESTS.")],
    model: Annotated[str, typer.Option("--model", help="Whose log; catalogue name.")] = DEMO_MODEL,
    size_bytes: Annotated[int, typer.Option(help="Bytes of an adapter, where the source does not say.")] = 80_000_000,
    rank: Annotated[int, typer.Option(help="Rank of an adapter, where the source does not say.")] = 16,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="PNG to write.")] = None,
    config: Config = None,
    data_dir: DataDir = None,
    as_json: AsJson = False,
) -> None:
    """Replay requests through every policy and size; print miss ratios, expected latency and settings."""
    settings = settings_of(config, data_dir)
    report: Mapping[str, Any] = {}
    if source == "logs":
        api = Api.of_operator(Path(settings.data_dir), "")
        told = api.call("GET", "/cache/trace", params={"model": model}).json()
        report = api.call("GET", "/cache").json().get(model, {})
        api.close()
        known = {digest: Adapter(size, found) for digest, (size, found) in told["adapters"].items()}
        trace = _filled(told["requests"], known, size_bytes, rank)
    elif source.startswith("zipf:"):
        trace = _zipf(source, size_bytes, rank)
    else:
        trace = _from_file(Path(source), size_bytes, rank)
    if not trace.requests:
        raise CommandFailed("no request with an adapter is there to replay")
    found = replay(trace, settings, report)
    if output is not None:
        draw(output, found)
    if as_json:
        print_json(found)
    else:
        _show(found, output)


def replay(trace: Trace, settings: Settings, report: Mapping[str, Any]) -> dict[str, Any]:
    """The tiers as they are set, all curves, and a recommendation. `report`: of a running runtime, if there is one."""
    tiers = {tier["tier"]: tier for tier in report.get("tiers", ())}
    rows = tiers.get("device", {}).get("max_bytes") or settings.runtime.adapter_rows
    memory = tiers.get("memory", {}).get("max_bytes") or settings.tiers.memory_bytes or DEFAULT_MEMORY_BYTES
    disk = tiers.get("disk", {}).get("max_bytes") or settings.tiers.disk_bytes
    sizes = {name: each.size_bytes for name, each in trace.adapters.items()}
    share = settings.tiers.giants_share
    costs = _costs(tiers, trace)

    device = through_device(trace, rows)
    in_memory = pass_through(device.missed, sizes, settings.tiers.memory_policy, memory, giants_share=share)
    on_disk = pass_through(in_memory.missed, sizes, settings.tiers.disk_policy, disk, giants_share=share, must=False)
    total = len(trace.requests)
    now = {
        "device": {"hits": device.hits, "misses": len(device.missed)},
        "memory": {"hits": in_memory.hits, "misses": len(in_memory.missed)},
        "disk": {"hits": on_disk.hits, "misses": len(on_disk.missed)},
    }
    ranks = [each.rank for each in trace.adapters.values()]
    newest = trace._replace(requests=trace.requests[-MAX_REPLAYED:])
    row_sizes = sorted({max(*ranks, int(sum(ranks) * part)) for part in (1 / 32, 1 / 16, 1 / 8, 1 / 4, 1 / 2)})
    curves = {
        "device": [
            Point("lru", size, len(missed) / len(newest.requests), len(missed))
            for size in sorted({*row_sizes, rows})
            for missed in (through_device(newest, size).missed,)
        ],
        "memory": curve(device.missed, sizes, POLICIES, budgets_for(trace, memory), giants_share=share),
        "disk": curve(in_memory.missed, sizes, POLICIES, budgets_for(trace, disk), giants_share=share, must=False),
    }
    share_of = {"memory": len(device.missed) / total, "disk": len(in_memory.missed) / total}
    added_s = (
        len(device.missed) * costs.copy_s + on_disk.hits * costs.disk_s + len(on_disk.missed) * costs.object_s
    ) / total
    return {
        "requests": total,
        "requests_of_a_point": min(total, MAX_REPLAYED),
        "adapters": len(trace.adapters),
        "footprint_bytes": sum(sizes.values()),
        "settings": {"adapter_rows": rows, "memory_bytes": memory, "disk_bytes": disk,
                     "memory_policy": settings.tiers.memory_policy, "disk_policy": settings.tiers.disk_policy},
        "now": now,
        "costs": costs._asdict(),
        "added_latency_ms": added_s * 1000,
        "curves": {tier: [point._asdict() for point in points] for tier, points in curves.items()},
        "recommendation": {
            **_advice("memory", curves["memory"], settings.tiers.memory_policy, costs.disk_s, share_of["memory"],
                      _least(settings, memory)),
            **_advice("disk", curves["disk"], settings.tiers.disk_policy, costs.object_s, share_of["disk"],
                      _least(settings, disk)),
        },
    }  # fmt: skip


def _least(settings: Settings, configured: int) -> int:
    """A tier must hold the largest adapter that may be uploaded, unless it does not now."""
    return max(SMALLEST_AUTO_TIER, min(adapter_limits(settings).max_bytes, configured))


def _advice(tier: str, points: list[Point], now: PolicyName, cost_s: float, share: float, least: int) -> dict[str, Any]:
    """The best policy (the one that is set, among equals), and the smallest size that costs a request hardly more than
    the largest. `share`: of all requests, what reaches the tier. `least`: no size below it, whatever was asked for.
    """
    if not points:
        return {}
    best = min(point.miss_ratio for point in points)
    enough = [point for point in points if point.miss_ratio <= best * GOOD_ENOUGH
              or (point.miss_ratio - best) * share * cost_s <= HARDLY_S]  # fmt: skip
    budget = max(least, min(point.budget for point in enough))
    # The next size that was replayed; above them all everything fits.
    replayed = min((point.budget for point in points if point.budget >= budget), default=None)
    at_size = [point for point in points if point.budget == replayed]
    if not at_size:
        return {f"{tier}_policy": now, f"{tier}_bytes": budget}
    chosen = min(at_size, key=lambda point: (round(point.miss_ratio, 3), point.policy != now, point.policy))
    return {f"{tier}_policy": chosen.policy, f"{tier}_bytes": budget}


def _costs(tiers: Mapping[str, Any], trace: Trace) -> Costs:
    """Means of what was measured; else what the reference machine showed (2 GB/s from disk, 200 MB/s and 50 ms)."""
    mean = sum(each.size_bytes for each in trace.adapters.values()) / len(trace.adapters)

    def measured(tier: str) -> float | None:
        loads = tiers.get(tier, {}).get("loads", {})
        return loads["seconds"] / loads["count"] if loads.get("count") else None

    copy, disk, store = (measured(tier) for tier in ("memory", "disk", "object"))
    return Costs(
        copy_s=0.002 + mean / 20e9 if copy is None else copy,
        disk_s=0.001 + mean / 2e9 if disk is None else disk,
        object_s=0.05 + mean / 200e6 if store is None else store,
        measured=store is not None,
    )


def _zipf(source: str, size_bytes: int, rank: int) -> Trace:
    try:
        _, adapters, exponent, requests = source.split(":")
        return zipf_trace(int(adapters), float(exponent), int(requests), size_bytes, rank)
    except ValueError as error:
        raise CommandFailed("--from zipf:ADAPTERS:EXPONENT:REQUESTS, for example zipf:2000:1.0:1000000", 2) from error


def _from_file(path: Path, size_bytes: int, rank: int) -> Trace:
    requests: list[str] = []
    known: dict[str, Adapter] = {}
    number = 0
    try:
        with path.open(encoding="utf-8") as lines:
            for line in lines:
                number += 1
                entry = json.loads(line)
                name = entry["adapter"]
                if not isinstance(name, str):
                    raise TypeError("adapter is no string")
                requests.append(name)
                if name not in known:
                    known[name] = Adapter(
                        max(1, int(entry.get("size_bytes", size_bytes))), max(1, int(entry.get("rank", rank)))
                    )
    except OSError as error:
        raise CommandFailed(f"{path}: {error.strerror}; --from takes logs, a file, or zipf:...", 2) from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise CommandFailed(f'{path}, line {number}: not a line like {{"adapter": "..."}} ({error})', 2) from error
    return Trace(requests, known)


def _filled(requests: list[str], known: dict[str, Adapter], size_bytes: int, rank: int) -> Trace:
    """Deleted adapters count as the average of the others."""
    if known:
        size_bytes = sum(each.size_bytes for each in known.values()) // len(known)
        rank = max(1, sum(each.rank for each in known.values()) // len(known))
    return Trace(requests, {name: known.get(name, Adapter(size_bytes, rank)) for name in dict.fromkeys(requests)})


def draw(path: Path, found: Mapping[str, Any]) -> None:
    """The curves that `replay` found, a panel for each tier. Raises CommandFailed."""
    panels = []
    for tier, points in found["curves"].items():
        lines: dict[str, list[tuple[float, float]]] = {}
        for point in points:
            lines.setdefault(point["policy"], []).append((point["budget"], point["miss_ratio"] * 100))
        panels.append((f"{tier}: misses there, %", lines, "rank rows" if tier == "device" else "bytes"))
    try:
        write_png(path, panels)
    except OSError as error:
        raise CommandFailed(f"{path}: {error.strerror}") from error


def _show(found: Mapping[str, Any], output: Path | None) -> None:
    print(f"{found['requests']} requests for {found['adapters']} adapters of {in_bytes(found['footprint_bytes'])}")
    if found["requests_of_a_point"] < found["requests"]:
        print(f"each point of a curve replays the last {found['requests_of_a_point']}; what is set now, all")
    for tier, points in found["curves"].items():
        budgets = sorted({point["budget"] for point in points})
        by_policy: dict[str, dict[int, float]] = {}
        for point in points:
            by_policy.setdefault(point["policy"], {})[point["budget"]] = point["miss_ratio"]
        shown = [str(size) if tier == "device" else in_bytes(size) for size in budgets]
        rows = [[policy, *(f"{ratios[size]:.1%}" for size in budgets)] for policy, ratios in by_policy.items()]
        print_rows(f"{tier}: misses of what arrives there, by size", ("policy", *shown), rows)
    measured = "measured" if found["costs"]["measured"] else "assumed"
    print(
        f"as it is set now, adapters add {found['added_latency_ms']:.2f} ms to a request on average ({measured} times)"
    )
    print("recommended:\n[tiers]")
    for name, value in found["recommendation"].items():
        print(f"{name} = {json.dumps(value)}")
    if output is not None:
        print(f"curves are in {output}")
