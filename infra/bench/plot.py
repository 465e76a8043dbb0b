"""Throughput over the number of callers as a small SVG, written by hand: one line per model and type."""

from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from infra.bench.rows import Row

WIDTH: Final = 480
HEIGHT: Final = 260
LEFT: Final = 60
BOTTOM: Final = 40
COLOURS: Final = ("#0b6e99", "#c2571a", "#3b8132", "#7b3fa0")


def write_plot(path: Path, rows: Sequence[Row]) -> bool:
    """Writes the plot of the rows `<model>.<type>.served.<n>`; False, with nothing written, where there are none."""
    lines: defaultdict[str, dict[int, float]] = defaultdict(dict)
    for row in rows:
        line, found, callers = row.metric.partition(".served.")
        if found and callers.isdecimal() and row.value is not None:
            lines[line][int(callers)] = row.value
    if not lines:
        return False
    columns = sorted({callers for points in lines.values() for callers in points})
    top = max(value for points in lines.values() for value in points.values()) * 1.1

    def x(callers: int) -> float:
        return LEFT + (WIDTH - LEFT - 110) * columns.index(callers) / max(1, len(columns) - 1)

    def y(value: float) -> float:
        return (HEIGHT - BOTTOM) * (1 - value / top) + 10

    parts = [_text(LEFT - 6, y(value), f"{value:.0f}", "end") for value in (0, top / 2, top)]
    parts += [_text(x(callers), HEIGHT - 12, str(callers), "middle") for callers in columns]
    parts.append(_text(LEFT + 4, 10, "tokens/s by concurrent requests", "start"))
    for colour, (line, points) in zip(COLOURS, sorted(lines.items()), strict=False):
        ordered = sorted(points.items())
        path_points = " ".join(f"{x(callers):.0f},{y(value):.0f}" for callers, value in ordered)
        parts.append(f'<polyline points="{path_points}" fill="none" stroke="{colour}" stroke-width="2"/>')
        parts.append(_text(x(ordered[-1][0]) + 6, y(ordered[-1][1]), line, "start", colour))
    axes = f"M{LEFT} 10V{y(0):.0f}H{WIDTH - 100}"
    parts.append(f'<path d="{axes}" fill="none" stroke="#888"/>')
    body = "\n".join(parts)
    path.write_text(
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{HEIGHT}" font-family="sans-serif" '
        f'font-size="11"><rect width="100%" height="100%" fill="white"/>\n{body}\n</svg>\n',
        encoding="utf-8",
    )
    return True


def _text(x: float, y: float, text: str, anchor: str, colour: str = "#333") -> str:
    return f'<text x="{x:.0f}" y="{y:.0f}" text-anchor="{anchor}" fill="{colour}">{text}</text>'
