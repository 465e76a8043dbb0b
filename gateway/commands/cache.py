"""`lorikeet cache`: the adapter tiers of the running runtimes: look, pin, warm, evict. For the operator: it needs the
data folder, not a token. `simulate` is in `cache_simulate.py`.
"""

import contextlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from gateway.commands.api import Api
from gateway.commands.cache_metrics import exposition
from gateway.commands.options import AsJson, Config, DataDir, print_json, print_rows, settings_of
from storage.tier_records import BOUNDS_S

app = typer.Typer(help="Adapter tiers: memory, disk, object store (operator).", no_args_is_help=True)

Reference = Annotated[str, typer.Argument(help="ACCOUNT_ID/NAME, a fine-tune's id, or cf-public-...")]
MAX_SHOWN = 50


@app.command()
def stats(
    config: Config = None,
    data_dir: DataDir = None,
    as_json: AsJson = False,
    prometheus: Annotated[bool, typer.Option("--prometheus", help="Prometheus' text format.")] = False,
) -> None:
    """Show what is in each tier, how often it was found there, and how long it took to bring it."""
    with _operator(config, data_dir) as api:
        report = api.call("GET", "/cache").json()
    if prometheus:
        print(exposition(report), end="")
        return
    if as_json:
        print_json(report)
        return
    for model, told in report.items():
        if "problem" in told:
            print(f"{model}: {told['problem']}")
            continue
        print(f"{model}: {about_runtime(told['runtime'])}")
        columns = ("tier", "entries", "used", "budget", "hits", "misses", "hit ratio", "evicted", "refused", "failures")
        print_rows(model, columns, [_row(tier) for tier in told["tiers"]])
        for tier in told["tiers"]:
            if tier["loads"]["count"]:
                print(f"  from {tier['tier']}: {load_times(tier['loads'])}")
        adapters = told["adapters"]
        rows = [[each["digest"][:12], _owners(each), str(each["size_bytes"]), _where(each), str(each["uses"])]
                for each in adapters[:MAX_SHOWN]]  # fmt: skip
        print_rows(f"adapters ({len(adapters)})", ("digest", "finetune", "bytes", "where", "uses"), rows)
        if len(adapters) > MAX_SHOWN:
            print(f"  and {len(adapters) - MAX_SHOWN} more; --json has them all")


@app.command()
def pin(reference: Reference, config: Config = None, data_dir: DataDir = None, as_json: AsJson = False) -> None:
    """Keep an adapter in memory from now on, after restarts too: every version to which an alias leads."""
    _care("pin", "is pinned", reference, config, data_dir, as_json)


@app.command()
def unpin(reference: Reference, config: Config = None, data_dir: DataDir = None, as_json: AsJson = False) -> None:
    """Let the tiers decide about it again."""
    _care("unpin", "is not pinned any more", reference, config, data_dir, as_json)


@app.command()
def warm(reference: Reference, config: Config = None, data_dir: DataDir = None, as_json: AsJson = False) -> None:
    """Bring an adapter to memory now."""
    _care("warm", "is on its way to memory", reference, config, data_dir, as_json)


@app.command()
def evict(reference: Reference, config: Config = None, data_dir: DataDir = None, as_json: AsJson = False) -> None:
    """Drop an adapter from device, memory and disk as soon as nobody uses it; its next request brings it again."""
    _care("evict", "leaves the tiers", reference, config, data_dir, as_json)


def about_runtime(stats: Mapping[str, Any]) -> str:
    """How it started, what its graphs cost, and what it does now; in one line."""
    said = [f"started in {stats['start_s']:.1f} s"]
    if stats["graphs_failed"]:
        said.append("no graph can be recorded any more: every step is launched piece by piece (see its log)")
    elif stats["graph_captures"]:
        said.append(f"{stats['graph_captures']} graphs recorded in {stats['graph_capture_s']:.1f} s")
    return ", ".join([*said, f"{stats['running']} running", f"{stats['waiting']} waiting"])


def load_times(loads: Mapping[str, Any]) -> str:
    """A histogram as one line: count, mean, and the bounds under which half, nine tenths and 99 of 100 lie."""
    count = loads["count"]
    mean_ms = loads["seconds"] / count * 1000
    shown = [f"{count} loads of {in_bytes(loads['size_bytes'] / count)}, {mean_ms:.1f} ms on average"]
    for share, name in ((0.5, "p50"), (0.9, "p90"), (0.99, "p99")):
        below, total = "longer", 0
        for bound, number in zip(BOUNDS_S, loads["counts"], strict=False):
            total += number
            if total >= share * count:
                below = f"< {bound * 1000:g} ms"
                break
        shown.append(f"{name} {below}")
    return ", ".join(shown)


def in_bytes(number: float) -> str:
    """Three digits and a unit."""
    for unit in ("B", "kB", "MB"):
        if number < 1000:
            return f"{number:.3g} {unit}"
        number /= 1000
    return f"{number:.3g} GB"


def _row(tier: Mapping[str, Any]) -> list[str]:
    asked = tier["hits"] + tier["misses"]
    amount = (lambda number: f"{number} rows") if tier["tier"] == "device" else in_bytes
    budget = amount(tier["max_bytes"]) if tier["max_bytes"] else ""
    used = amount(tier["used_bytes"]) + (" came down" if tier["tier"] == "object" else "")
    ratio = f"{tier['hits'] / asked:.1%}" if asked else ""
    return [tier["tier"], str(tier["entries"]), used, budget, str(tier["hits"]), str(tier["misses"]), ratio,
            str(tier["evictions"]), str(tier["refused"]), str(tier["failures"])]  # fmt: skip


def _owners(adapter: Mapping[str, Any]) -> str:
    return ", ".join(f"{owner['account'][:8]}/{owner['name']}@{owner['version']}" for owner in adapter["owners"])


def _where(adapter: Mapping[str, Any]) -> str:
    places = [place for place in ("device", "memory", "disk") if adapter[place]]
    return ", ".join(places) + (" (pinned)" if adapter["pinned"] else "")


def _care(verb: str, done: str, reference: str, config: Path | None, data_dir: Path | None, as_json: bool) -> None:
    with _operator(config, data_dir) as api:
        named = api.call("POST", f"/cache/{verb}", json={"finetune": reference}).json()
    if as_json:
        print_json(named)
    else:
        print(f"{named['name']} ({named['id']}) {done}")


@contextlib.contextmanager
def _operator(config: Path | None, data_dir: Path | None) -> Iterator[Api]:
    api = Api.of_operator(Path(settings_of(config, data_dir).data_dir), "")
    try:
        yield api
    finally:
        api.close()
