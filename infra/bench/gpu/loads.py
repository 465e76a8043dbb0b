"""The step `loads`: what a load takes, and what running requests notice of it. How: `loads_ours.py`.

Writes gpu-loads.json, and gpu-loads.png: the time between tokens, step by step, while 1, 8 and 64 adapters stream in.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from infra.bench.gpu.child import Line, ask, short_of
from infra.bench.gpu.curve import Panel, draw
from infra.bench.gpu.processes import ends_with_children
from infra.bench.gpu.settings import Setting, setting_of
from kernels.bench.rows import Row, merge_rows

COPY: Final = "bare pinned copy"
QUIET: Final = "the same run without loads"
DISK_MS: Final = 40.0
GAP_TARGET: Final = 0.02
_WAYS: Final = {
    "host": "host memory to admitted", "file": "file in the page cache to admitted", "disk": "disk to admitted",
}  # fmt: skip


def rows_of(setting: Setting, about: Line, lines: dict[str, Line], ended: str) -> list[Row]:
    """All of them, whatever is missing."""
    rows, device = list[Row](), str(about.get("device", ""))
    streams = [lines[key] for key in (f"stream.{count}" for count in setting.load_counts) if key in lines]
    step_ms = next((line["quiet"]["p50"] for line in streams if "quiet" in line), None)
    for key in ("host", "file", "disk"):
        line = lines.get(key)
        name = f"load.{key}.r{setting.load_rank}"
        if line is None or "note" in line:
            rows.append(Row(name, None, "ms", COPY, note=short_of(line, ended)))
            continue
        rates = [line["bytes"] / 1e6 / line[field] for field in ("ms", "bare_ms")]
        size = f"{_WAYS[key]}, {line['bytes'] / 1e6:.0f} MB"
        note = f"{size}: {rates[0]:.1f} GB/s, bare {rates[1]:.1f}; {device}"
        row = Row(name, line["ms"], "ms", COPY, line["bare_ms"], line["bare_ms"] / line["ms"], note=note)
        if key == "host" and step_ms is not None:
            most = line["bare_ms"] + step_ms
            row = row._replace(target=f"<= copy + one step ({step_ms:.2f} ms)", holds=line["ms"] <= most)
        elif key == "disk":
            row = row._replace(target=f"<= {DISK_MS:.0f} ms", holds=line["ms"] <= DISK_MS)
        rows.append(row)
    for count in setting.load_counts:
        rows += stream_rows(setting, count, lines.get(f"stream.{count}"), ended)
    return rows


def stream_rows(setting: Setting, count: int, line: Line | None, ended: str) -> list[Row]:
    """Half and 99th percentile beside the same run without loads."""
    name = f"load.while_running.{count}"
    if line is None or "note" in line:
        return [Row(f"{name}.{part}", None, "ms between tokens", QUIET, note=short_of(line, ended)) for part in _PARTS]
    note = (
        f"{setting.load_running} requests, {line['bytes'] / 1e6:.0f} MB in {line['burst_ms']:.1f} ms; "
        f"{line['busy']['number']} gaps, {line['quiet']['number']} without"
    )
    rows = []
    for part in _PARTS:
        busy, quiet = line["busy"][part], line["quiet"][part]
        row = Row(f"{name}.{part}", busy, "ms between tokens", QUIET, quiet, quiet / busy, note=note)
        if part == "p99":
            row = row._replace(target=f"<= {GAP_TARGET:.0%} more", holds=busy <= (1 + GAP_TARGET) * quiet)
        rows.append(row)
    return rows


_PARTS: Final = ("p50", "p99")


def panels(setting: Setting, lines: dict[str, Line]) -> list[Panel]:
    """One for each burst that was measured."""
    found = []
    for count in setting.load_counts:
        curve = lines.get(f"stream.{count}", {}).get("curve")
        if curve:
            steps = [(at, gap) for at, gap in curve["steps"]]
            title = f"{count} adapter{'s' if count > 1 else ''}"
            found.append(Panel(title, steps, curve["asked"], curve["arrivals"]))
    return found


def main(argv: Sequence[str] | None = None) -> int:
    """Returns 1 when nothing could be measured."""
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--out", type=Path, required=True)
    options.add_argument("--seconds", type=float, default=60.0)
    options.add_argument("--device", default="cuda")
    arguments = options.parse_args(argv)
    setting = setting_of(arguments.device)
    folder = arguments.out.with_suffix("")
    about, lines, ended = ask("infra.bench.gpu.loads_ours", arguments.seconds, arguments.device, folder)
    rows = rows_of(setting, about, lines, ended)
    merge_rows(arguments.out, rows)
    title = f"{setting.load_running} running requests, r{setting.load_rank} adapters, {about.get('device', '')}"
    draw(arguments.out.with_suffix(".png"), title, panels(setting, lines))
    return 0 if any(row.value is not None for row in rows) else 1


if __name__ == "__main__":
    ends_with_children()
    sys.exit(main())
