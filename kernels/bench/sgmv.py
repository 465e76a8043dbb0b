"""SGMV beside every peer, on Punica's grid: `python -m kernels.bench.sgmv` on a GPU host.

For each point (widths, rank, rows, how rows share adapters) one operation y += x A^T B of one module is timed in a CUDA
graph of many, whose weights together overflow the L2 cache; we and the peer take turns, and medians count. Each peer
has a process of its own and a share of the time. Beside each time: the bytes that must move, and what the card's
measured copy speed needs for them (the floor). A peer that is missing, fails or computes something else is a row
that says so.

Writes bench-results/gpu-kernels.json (rows of an earlier visit that are not measured again stay) and prints a summary.
"""

import json
import math
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from kernels.bench.rows import Row, merge_rows, table
from kernels.bench.sgmv_child import PEERS, parser
from kernels.bench.sgmv_points import Point, grid
from kernels.bench.shares import Shares

ROOT: Final = Path(__file__).resolve().parents[2]
FLOOR_TARGET: Final = 1.15
# Bytes dominate where they need so many times what two empty launches take.
DOMINATE: Final = 2.0


def ask(peer: str, arguments: Sequence[str], limit_s: float, folder: Path) -> list[dict[str, Any]]:
    """The lines that the peer's process wrote, and one more that says how it ended if it ended badly."""
    out, log = folder / "lines", folder / "log"
    command = [sys.executable, "-m", "kernels.bench.sgmv_child", "--peer", peer, "--out", str(out), *arguments]
    with log.open("w") as file:
        child = subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT, cwd=ROOT)
        try:
            code = child.wait(limit_s)
        except subprocess.TimeoutExpired:
            child.kill()
            code = child.wait()
    written = out.read_text(encoding="utf-8").splitlines(keepends=True) if out.exists() else []
    lines = [json.loads(line) for line in written if line.endswith("\n")]
    if code:
        said = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
        lines.append({"died": f"its process ended with {code}: {said[-1] if said else 'without a word'}"})
    out.unlink(missing_ok=True)
    return lines


def rows_of(peer: str, lines: Sequence[dict[str, Any]], points: Sequence[Point]) -> list[Row]:
    """One row per point, and one against the floor where we were measured."""
    machine = next((line for line in lines if "bandwidth" in line), None)
    end = next((line[key] for line in lines for key in ("missing", "died") if key in line), "")
    by_point = {Point(*line["point"]): line for line in lines if "point" in line}
    rows = []
    for point in points:
        line = by_point.get(point, {"ours_us": None, "peer_us": None, "note": end or "was not reached"})
        ours, theirs = line["ours_us"], line["peer_us"]
        ratio = theirs / ours if ours and theirs else None
        holds = None if ratio is None else ratio > 1
        note = line["note"]
        if machine is not None and ours:
            floor = 1e6 * line["bytes"] / machine["bandwidth"]
            note = f"{line['bytes'] / 1e6:.2f} MB, floor {floor:.2f} us; {machine['device']}"
            rows.append(floor_row(point, ours, floor, machine["launch_us"], note))
        rows.append(Row(str(point), ours, "us", peer, theirs, ratio, "faster", holds, note))
    return rows


def floor_row(point: Point, ours: float, floor: float, launches: float, note: str) -> Row:
    """Us against the bytes."""
    dominate = floor >= DOMINATE * launches
    target = f"<= {FLOOR_TARGET} x the byte floor" if dominate else None
    holds = ours <= FLOOR_TARGET * floor if dominate else None
    note = f"{note}; two empty launches {launches:.2f} us"
    return Row(str(point), ours, "us", "byte floor", floor, floor / ours, target, holds, note)


def summary(rows: Sequence[Row]) -> list[Row]:
    """One row per peer: the geometric mean of the ratios, and in how many points we are ahead."""
    found = []
    for peer in dict.fromkeys(row.peer for row in rows):
        own = [row for row in rows if row.peer == peer]
        ratios = [row.ratio for row in own if row.ratio is not None]
        if not ratios:
            found.append(Row("sgmv, all points", None, "", peer, note=own[0].note))
            continue
        judged = [row for row in own if row.holds is not None]
        worst = min((row for row in own if row.ratio is not None), key=lambda row: row.ratio or 0)
        mean = math.exp(sum(map(math.log, ratios)) / len(ratios))
        kept = sum(bool(row.holds) for row in judged)
        note = (
            f"{kept} of {len(judged)}, {len(ratios)} of {len(own)} measured; worst {worst.ratio:.2f}x at {worst.metric}"
        )
        found.append(
            Row(
                "sgmv, all points",
                None,
                "",
                peer,
                None,
                mean,
                own[-1].target or worst.target,
                kept == len(judged),
                note,
            )
        )
    return found


def main(argv: Sequence[str] | None = None) -> int:
    """Prints the summary; returns 1 when nothing at all could be measured."""
    options = parser()
    options.add_argument("--peers", default=",".join(PEERS), help="names, separated by commas")
    options.add_argument("--out", type=Path, default=Path("bench-results/gpu-kernels.json"))
    options.add_argument("--within", type=float, default=0.0, help="seconds for all peers together, over --seconds")
    options.add_argument("--grace", type=float, default=120.0, help="seconds after which a peer's process is ended")
    arguments = options.parse_args(argv)
    points, rows, peers = grid(arguments.points), list[Row](), arguments.peers.split(",")
    shares = Shares(arguments.within, len(peers))
    with tempfile.TemporaryDirectory() as folder:
        for peer in peers:
            if arguments.within:
                arguments.seconds = shares.next()
            passed = [
                word
                for name in ("points", "peers_folder", "seconds", "repeats", "sets", "device")
                for word in (f"--{name.replace('_', '-')}", str(getattr(arguments, name)))
            ]
            lines = ask(peer, passed, arguments.seconds + arguments.grace, Path(folder))
            made = rows_of(peer, lines, points)
            known = {(row.metric, row.peer) for row in rows}
            rows += [row for row in made if (row.metric, row.peer) not in known]
            merge_rows(arguments.out, rows)
            print(
                f"{peer}: {sum(row.peer_value is not None for row in made if row.peer == peer)} of {len(points)} points"
            )
    total = summary(rows)
    merge_rows(arguments.out, [*rows, *total])
    print(table(f"SGMV beside its peers, {arguments.points} grid", total))
    return 0 if any(row.value is not None for row in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
