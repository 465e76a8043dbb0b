"""The step `adapters`: 1, 10, 100 and 1,000 adapters with Zipf's popularity beside one. How: `adapters_ours.py`.

Writes gpu-adapters.json.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from infra.bench.gpu.child import Line, ask, short_of
from infra.bench.gpu.processes import ends_with_children
from infra.bench.gpu.settings import Setting, setting_of, step_bytes
from kernels.bench.rows import Row, merge_rows

ONE: Final = "one adapter"
TARGET: Final = 0.9


def rows_of(setting: Setting, about: Line, lines: dict[str, Line], ended: str) -> list[Row]:
    """All of them, whatever is missing. The target holds while the hot set fits, and the note says how far it does."""
    rows, one = list[Row](), lines.get("zipf.1", {}).get("rate")
    context = setting.zipf_prompt + setting.zipf_tokens // 2
    least = step_bytes(setting, setting.zipf_running, context, setting.load_rank)
    for count in setting.zipf_counts:
        line, name = lines.get(f"zipf.{count}"), f"adapters.{count}"
        if line is None or "note" in line:
            rows.append(Row(name, None, "tokens/s", ONE, note=short_of(line, ended)))
            continue
        # Adapters that meet in a step are all read by it: what that alone costs is no fault of ours.
        moved = step_bytes(setting, setting.zipf_running, context, round(setting.load_rank * line["together"]))
        note = (
            f"{line['together']:.1f} adapters a step, by its bytes {least / moved:.2f}x; "
            f"{setting.zipf_running} requests of {setting.zipf_prompt} + {setting.zipf_tokens} tokens, "
            f"r{setting.load_rank}; {line['used']} adapters were asked for, {line['resident']} on the device at the "
            f"end, {line['evictions']} left it; {about.get('device', '')}"
        )
        ratio = None if one is None else line["rate"] / one
        row = Row(name, line["rate"], "tokens/s", ONE, one, ratio, note=note)
        if ratio is not None and count > 1:
            row = row._replace(target=f">= {TARGET:.0%} of one adapter", holds=ratio >= TARGET)
        rows.append(row)
    return rows


def main(argv: Sequence[str] | None = None) -> int:
    """Returns 1 when nothing could be measured."""
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--out", type=Path, required=True)
    options.add_argument("--seconds", type=float, default=60.0)
    options.add_argument("--device", default="cuda")
    arguments = options.parse_args(argv)
    setting, folder = setting_of(arguments.device), arguments.out.with_suffix("")
    about, lines, ended = ask("infra.bench.gpu.adapters_ours", arguments.seconds, arguments.device, folder)
    rows = rows_of(setting, about, lines, ended)
    merge_rows(arguments.out, rows)
    return 0 if any(row.value is not None for row in rows) else 1


if __name__ == "__main__":
    ends_with_children()
    sys.exit(main())
