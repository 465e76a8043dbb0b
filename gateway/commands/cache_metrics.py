"""What `lorikeet cache stats --prometheus` prints: the tiers' figures and the runtimes' own in Prometheus' text format,
for the node exporter's textfile collector or anything else that reads it. One sample a tier and figure, or a runtime
and figure; adapters are not told apart here, since their number has no bound.
"""

from collections.abc import Iterator, Mapping
from typing import Any, Final

from storage.tier_records import BOUNDS_S

_GAUGES: Final = {
    "entries": ("lorikeet_tier_entries", "Adapters in the tier."),
    "used_bytes": (
        "lorikeet_tier_used_{unit}",
        "What they take; for the object store, what came down since the start.",
    ),
    "max_bytes": ("lorikeet_tier_budget_{unit}", "What they may take."),
    "pinned_bytes": ("lorikeet_tier_pinned_{unit}", "What pinned adapters take."),
}
_COUNTERS: Final = {
    "hits": ("hits", "Asked for and there."),
    "misses": ("misses", "Asked for and not there."),
    "evictions": ("evictions", "Went to make room."),
    "refused": ("refused", "Found no room: all of it in use, or a disk that is full or failing."),
    "failures": ("failures", "Bad files, failed downloads and removals."),
    "quarantined": ("quarantined", "Files put aside because they were not what their name says."),
    "retries": ("retries", "Parts of downloads asked for again."),
    "negative_hits": ("negative_hits", "Answers that it is missing or damaged, given without asking again."),
}
# What a runtime tells of itself: field -> (name, kind, what it is).
_RUNTIME: Final = {
    "start_s": ("start_seconds", "gauge", "From reading its settings until it took connections."),
    "graph_captures": ("graph_captures_total", "counter", "Decode steps recorded as graphs of the device."),
    "graph_capture_s": ("graph_capture_seconds_total", "counter", "What recording them took."),
    "graphs_failed": ("graphs_failed", "gauge", "1 once no graph can be recorded any more: slower, and right."),
    "running": ("running", "gauge", "Sequences in the batch."),
    "waiting": ("waiting", "gauge", "Sequences that wait for room."),
    "waiting_for_adapter": ("waiting_for_adapter", "gauge", "Sequences that wait for their adapter."),
    "free_blocks": ("kv_free_blocks", "gauge", "Blocks of the key/value cache that nobody uses."),
    "total_blocks": ("kv_blocks", "gauge", "Blocks of the key/value cache."),
    "cached_blocks": ("kv_cached_blocks", "gauge", "Blocks that the prefix cache knows."),
    "adapters_resident": ("adapters_resident", "gauge", "Adapters on the device."),
    "adapter_rows_used": ("adapter_rows_used", "gauge", "Rank rows on the device that adapters take."),
    "adapter_rows_total": ("adapter_rows", "gauge", "Rank rows on the device."),
    "memory_bytes": ("memory_tier_bytes", "gauge", "Adapters in host memory."),
    "disk_bytes": ("disk_tier_bytes", "gauge", "Adapters on disk."),
    "steps": ("steps_total", "counter", "Steps of the engine."),
    "generated_tokens": ("generated_tokens_total", "counter", "Tokens drawn."),
    "evictions": ("adapter_evictions_total", "counter", "Adapters that left the device to make room."),
    "preemptions": ("preemptions_total", "counter", "Sequences that gave their blocks back and began again."),
    "refused": ("refused_total", "counter", "Sequences turned away: queue full, or unusable."),
    "cut_connections": ("cut_connections_total", "counter", "Gateways that did not read."),
    "prefix_hit_tokens": ("prefix_hit_tokens_total", "counter", "Prompt tokens found computed."),
    "prefix_prompt_tokens": ("prefix_prompt_tokens_total", "counter", "Prompt tokens of all sequences that started."),
}


def exposition(report: Mapping[str, Any]) -> str:
    """`report` is that of `GET /cache`, by model."""
    tiers = [(model, tier) for model, told in report.items() for tier in told["tiers"]]
    lines = [
        "# HELP lorikeet_tier_up Whether the model's runtime answers.",
        "# TYPE lorikeet_tier_up gauge",
        *(f"lorikeet_tier_up{_labels(model=model)} {int('problem' not in told)}" for model, told in report.items()),
    ]
    for field, (pattern, told) in _GAUGES.items():
        units = ("rows", "bytes") if "{unit}" in pattern else ("",)
        for unit in units:
            shown = [(m, t) for m, t in tiers if not unit or (unit == "rows") == (t["tier"] == "device")]
            lines += _family(pattern.format(unit=unit), "gauge", told, field, shown)
    for field, (name, told) in _COUNTERS.items():
        lines += _family(f"lorikeet_tier_{name}_total", "counter", told, field, tiers)
    lines += ["# HELP lorikeet_tier_load_seconds Bringing an adapter up from the tier.",
              "# TYPE lorikeet_tier_load_seconds histogram"]  # fmt: skip
    for model, tier in tiers:
        lines += _histogram(_labels(model=model, tier=tier["tier"]), tier["loads"])
    for field, (name, kind, told) in _RUNTIME.items():
        lines += [f"# HELP lorikeet_runtime_{name} {told}", f"# TYPE lorikeet_runtime_{name} {kind}"]
        lines += [
            f"lorikeet_runtime_{name}{_labels(model=model)} {about['runtime'][field]}"
            for model, about in report.items()
            if about["runtime"]
        ]
    return "\n".join(lines) + "\n"


def _family(name: str, kind: str, told: str, field: str, tiers: list[tuple[str, Mapping[str, Any]]]) -> list[str]:
    samples = [f"{name}{_labels(model=model, tier=tier['tier'])} {tier[field]}" for model, tier in tiers]
    return [f"# HELP {name} {told}", f"# TYPE {name} {kind}", *samples]


def _histogram(labels: str, loads: Mapping[str, Any]) -> Iterator[str]:
    below = 0
    for bound, count in zip((*BOUNDS_S, None), loads["counts"], strict=True):
        below += count
        edge = "+Inf" if bound is None else f"{bound:g}"
        yield f'lorikeet_tier_load_seconds_bucket{labels[:-1]},le="{edge}"}} {below}'
    yield f"lorikeet_tier_load_seconds_sum{labels} {loads['seconds']:.6f}"
    yield f"lorikeet_tier_load_seconds_count{labels} {loads['count']}"


def _labels(**values: str) -> str:
    shown = (value.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n") for value in values.values())
    return "{" + ",".join(f'{name}="{value}"' for name, value in zip(values, shown, strict=True)) + "}"
