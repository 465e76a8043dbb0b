"""The curve that nobody publishes: what running requests wait for each token while adapters stream in.

One panel for each number of adapters, one below the other with the same scales: a dot for each step, at the time since
the panel began and the milliseconds since the step before; a tick on the axis for each adapter that became usable. The
grey band is the time between the first adapter that was asked for and the last that arrived.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Final, NamedTuple

from infra.bench.gpu.png import LETTER_HEIGHT, Colour, Picture

WIDTH: Final = 960
PANEL: Final = 170
LEFT: Final = 76
RIGHT: Final = 20
TOP: Final = 40
BOTTOM: Final = 34
_BLACK: Final[Colour] = (30, 30, 30)
_GREY: Final[Colour] = (150, 150, 150)
_BAND: Final[Colour] = (232, 232, 232)
_STEP: Final[Colour] = (11, 110, 153)
_ARRIVAL: Final[Colour] = (194, 87, 26)


class Panel(NamedTuple):
    """steps: (seconds since the panel began, milliseconds since the step before). asked: when the adapters were asked
    for, None where there were none. arrivals: when each became usable."""

    title: str
    steps: Sequence[tuple[float, float]]
    asked: float | None = None
    arrivals: Sequence[float] = ()


def draw(path: Path, title: str, panels: Sequence[Panel]) -> bool:
    """False, with nothing written, where there is no step."""
    steps = [step for panel in panels for step in panel.steps]
    if not steps:
        return False
    seconds = max(time for time, _ in steps) or 1.0
    most = _round_up(max(gap for _, gap in steps))
    picture = Picture(WIDTH, TOP + PANEL * len(panels) + 6)
    picture.text(LEFT, 14, title, _BLACK, 2)
    for index, panel in enumerate(panels):
        _draw_panel(picture, TOP + index * PANEL, panel, seconds, most)
    picture.write(path)
    return True


def _draw_panel(picture: Picture, top: int, panel: Panel, seconds: float, most: float) -> None:
    right, floor = WIDTH - RIGHT, top + PANEL - BOTTOM

    def x(time: float) -> int:
        return LEFT + round((right - LEFT) * min(1.0, time / seconds))

    def y(gap: float) -> int:
        return floor - round((floor - top - 18) * gap / most)

    if panel.asked is not None:
        last = max(panel.arrivals, default=panel.asked)
        picture.box(x(panel.asked), top + 16, max(2, x(last) - x(panel.asked)), floor - top - 16, _BAND)
    for value in (0.0, most / 2, most):
        picture.line((LEFT - 4, y(value)), (right, y(value)), _GREY if value == 0 else _BAND)
        picture.text(LEFT - 8, y(value) - LETTER_HEIGHT, f"{value:g}", _BLACK, 2, anchor=1.0)
    picture.line((LEFT, top + 16), (LEFT, floor), _GREY)
    for part in range(5):
        picture.text(x(seconds * part / 4), floor + 14, f"{seconds * part / 4:.2f} s", _BLACK, 2, anchor=part / 4)
    picture.text(LEFT + 6, top + 2, f"{panel.title}: ms between tokens", _BLACK, 2)
    for time, gap in panel.steps:
        picture.box(x(time) - 1, y(gap) - 1, 3, 3, _STEP)
    for arrival in panel.arrivals:
        picture.line((x(arrival), floor + 1), (x(arrival), floor + 8), _ARRIVAL, 2)


def _round_up(value: float) -> float:
    """The next of 1, 2, 5, 10, 20, ..."""
    size = 1e-3
    while True:
        for step in (1, 2, 5):
            if value <= step * size:
                return step * size
        size *= 10
