"""The step `decode`: Llama-2-7B's shapes with random weights, beside transformers + PEFT and what memory allows.

Step time and tokens a second at 1, 8, 32 and 64 rows of 512 tokens, the base alone and with 1, 8 and 32 adapters of
rank 8, 16 and 64; times to the first token of prompts of 128, 1024 and 4096. Ours and the peer are processes, one after
the other; ours has a little more than half of the time. The floor: what the card's measured copy speed needs for the
bytes of a step (`settings.step_bytes`). Writes gpu-decode.json.
"""

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from infra.bench.gpu.child import Line, ask, short_of
from infra.bench.gpu.decode_cases import Case, cases, overhead_target
from infra.bench.gpu.processes import ends_with_children
from infra.bench.gpu.settings import Setting, setting_of, step_bytes
from kernels.bench.rows import Row, merge_rows

PEER: Final = "transformers + PEFT"
FLOOR: Final = "memory floor"
FLOOR_TARGET: Final = 0.8
FLOOR_BATCH: Final = 32
# How far apart two measurements of one thing may lie.
IDLE_TARGET: Final = 0.01
OURS_SHARE: Final = 0.6


class Side:
    """What a child said."""

    def __init__(self, about: Line, lines: dict[str, Line], ended: str) -> None:
        self.about, self._lines, self._ended = about, lines, ended

    def line(self, key: str) -> Line | None:
        """The figures of a case, None where there are none."""
        line = self._lines.get(key)
        return None if line is None or "note" in line else line

    def why(self, key: str) -> str:
        """Why there are none."""
        return short_of(self._lines.get(key), self._ended)


def rows_of(setting: Setting, ours: Side, theirs: Side) -> list[Row]:
    """All of them, whatever is missing."""
    rows = list[Row]()
    for case in cases(setting):
        rows += case_rows(setting, case, ours, theirs)
    for prompt in setting.prompts:
        for name in (f"ttft.{prompt}", f"ttft.{prompt}.adapter"):
            rows.append(_beside(name, "ms", ours, theirs, name))
    idle, graphs, start = ours.line("idle"), ours.line("graphs"), ours.line("start")
    name = "decode.idle_adapters"
    if idle is not None:
        change = idle["ms"] / idle["before_ms"] - 1
        note = f"a base step of {idle['batch']} rows: {idle['ms']:.3f} ms, and {idle['before_ms']:.3f} before any came"
        rows.append(_judged(Row(name, 100 * change, "%", note=note), IDLE_TARGET, change))
    else:
        rows.append(Row(name, None, "%", note=ours.why("idle")))
    if start is not None:
        rows.append(Row("decode.start", start["seconds"], "s", note="weights made, pools and cache allocated"))
    if graphs is not None:
        note = f"{graphs['captures']} graphs, {graphs['replays']} replays, {graphs['eager']} steps without"
        if graphs.get("failed"):
            note = f"A CAPTURE FAILED, all steps after it are eager (see the log); {note}"
        rows.append(
            Row("decode.capture", graphs["capture_s"], "s", note=f"{note}; longest {graphs['longest_s']:.3f} s")
        )
    return rows


def case_rows(setting: Setting, case: Case, ours: Side, theirs: Side) -> list[Row]:
    """A step beside the floor, tokens a second beside the peer, and what adapters add to the base."""
    name, line, peer = str(case), ours.line(str(case)), theirs.line(str(case))
    moved = step_bytes(setting, case.batch, setting.context + setting.steps // 2, case.adapter_rows)
    if line is None:
        rows = [Row(name, None, "ms", FLOOR, note=ours.why(name))]
    else:
        floor = 1e3 * moved / ours.about["bandwidth"]
        ratio, note = floor / line["ms"], f"{moved / 1e9:.2f} GB; the host takes {line['host_ms']:.2f} ms to start it"
        row = Row(name, line["ms"], "ms", FLOOR, floor, ratio, note=f"{note}; {ours.about['device']}")
        if case.rank == 0 and case.batch <= FLOOR_BATCH:
            row = row._replace(target=f">= {FLOOR_TARGET:.0%} of the copy speed", holds=ratio >= FLOOR_TARGET)
        rows = [row]
        if case.rank:
            more = line["ms"] / line["base_ms"] - 1
            added = Row(f"{name}.overhead", 100 * more, "% of the base's step", note=f"base {line['base_ms']:.3f} ms")
            target = overhead_target(case)
            rows.append(added if target is None else _judged(added, target, more))
    rates = [None if found is None else case.batch / found["ms"] * 1e3 for found in (line, peer)]
    rows.append(_row(f"{name}.rate", "tokens/s", rates, 1, "" if peer else theirs.why(name)))
    return rows


def _beside(name: str, unit: str, ours: Side, theirs: Side, key: str) -> Row:
    line, peer = ours.line(key), theirs.line(key)
    note = "; ".join(
        f"{who}: {side.why(key)}" for who, side, found in (("ours", ours, line), (PEER, theirs, peer)) if found is None
    )
    return _row(name, unit, [None if found is None else found["ms"] for found in (line, peer)], -1, note)


def _row(name: str, unit: str, values: Sequence[float | None], better: int, note: str) -> Row:
    """better: 1 where more is better, -1 where less is."""
    own, peer = values
    ratio = None if own is None or peer is None else (own / peer) ** better
    return Row(name, own, unit, PEER, peer, ratio, note=note)


def _judged(row: Row, most: float, found: float) -> Row:
    return row._replace(target=f"<= {most:.0%}", holds=found <= most)


def main(argv: Sequence[str] | None = None) -> int:
    """Returns 1 when nothing could be measured."""
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--out", type=Path, required=True)
    options.add_argument("--seconds", type=float, default=90.0)
    options.add_argument("--device", default="cuda")
    arguments = options.parse_args(argv)
    setting, folder = setting_of(arguments.device), arguments.out.with_suffix("")
    end = time.monotonic() + arguments.seconds
    nobody = Side({}, {}, "did not run yet")
    ours = Side(*ask("infra.bench.gpu.decode_ours", OURS_SHARE * arguments.seconds, arguments.device, folder))
    # Whatever the peer does to the device, or to the time, these stay.
    merge_rows(arguments.out, rows_of(setting, ours, nobody))
    left = max(1.0, end - time.monotonic())
    theirs = Side(*ask("infra.bench.gpu.decode_peft", left, arguments.device, folder))
    rows = rows_of(setting, ours, theirs)
    merge_rows(arguments.out, rows)
    return 0 if any(row.value is not None for row in rows) else 1


if __name__ == "__main__":
    ends_with_children()
    sys.exit(main())
