"""Curves as a PNG, drawn with numpy and zlib: a grid, lines, a legend, letters of five by seven dots."""

import itertools
import math
import struct
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt

_GLYPHS: Final = {
    "0": "3E5149453E", "1": "00427F4000", "2": "4261514946", "3": "2141454B31", "4": "1814127F10", "5": "2745454539",
    "6": "3C4A494930", "7": "0171090503", "8": "3649494936", "9": "064949291E", "A": "7E1111117E", "B": "7F49494936",
    "C": "3E41414122", "D": "7F4141221C", "E": "7F49494941", "F": "7F09090901", "G": "3E4149497A", "H": "7F0808087F",
    "I": "00417F4100", "J": "2040413F01", "K": "7F08142241", "L": "7F40404040", "M": "7F020C027F", "N": "7F0408107F",
    "O": "3E4141413E", "P": "7F09090906", "Q": "3E4151215E", "R": "7F09192946", "S": "4649494931", "T": "01017F0101",
    "U": "3F4040403F", "V": "1F2040201F", "W": "3F4038403F", "X": "6314081463", "Y": "0708700807", "Z": "6151494543",
    ".": "0060600000", "%": "2313086462", "-": "0808080808", ":": "0036360000", "/": "2010080402", ",": "0050300000",
    "(": "001C224100", ")": "0041221C00", " ": "0000000000", "_": "4040404040", "=": "1414141414",
}  # fmt: skip
COLOURS: Final = ((11, 110, 153), (194, 87, 26), (59, 129, 50), (123, 63, 160), (40, 40, 40), (150, 30, 60))
_SCALE: Final = 2
_LETTER: Final = 6 * _SCALE
_WIDTH, _HEIGHT = 460, 340
_LEFT, _RIGHT, _TOP, _BOTTOM = 70, 24, 56, 60
_GRID: Final = (225, 225, 225)
_AXIS: Final = (80, 80, 80)

Line = Sequence[tuple[float, float]]


def write_png(path: Path, panels: Sequence[tuple[str, Mapping[str, Line], str]], *, log_x: bool = True) -> None:
    """Panels side by side: (title, lines by name, what the horizontal axis is). Vertical axes begin at 0."""
    image = np.full((_HEIGHT, _WIDTH * len(panels), 3), 255, np.uint8)
    for number, (title, lines, below) in enumerate(panels):
        _panel(image[:, number * _WIDTH : (number + 1) * _WIDTH], title, lines, below, log_x=log_x)
    rows = b"".join(b"\0" + row.tobytes() for row in image)
    size = struct.pack(">IIBBBBB", image.shape[1], image.shape[0], 8, 2, 0, 0, 0)
    parts = ((b"IHDR", size), (b"IDAT", zlib.compress(rows, 9)), (b"IEND", b""))
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)) for kind, data in parts
    ))  # fmt: skip


def _panel(image: npt.NDArray[np.uint8], title: str, lines: Mapping[str, Line], below: str, *, log_x: bool) -> None:
    points = [point for line in lines.values() for point in line] or [(1.0, 0.0)]
    low, high = min(x for x, _ in points), max(x for x, _ in points)
    log_x = log_x and low > 0
    if not log_x:
        low = min(low, 0.0)
    marks = _round_marks(max(y for _, y in points))

    def across(x: float) -> float:
        if high <= low:
            share = 0.5
        elif log_x:
            share = math.log(x / low) / math.log(high / low)
        else:
            share = (x - low) / (high - low)
        return _LEFT + share * (_WIDTH - _LEFT - _RIGHT)

    def up(y: float) -> float:
        return _HEIGHT - _BOTTOM - y / marks[-1] * (_HEIGHT - _TOP - _BOTTOM)

    for y in marks:
        _line(image, _LEFT, up(y), _WIDTH - _RIGHT, up(y), _GRID)
        _text(image, _LEFT - 8 - _LETTER * len(_short(y)), int(up(y)) - 6, _short(y))
    free_from = 0.0
    for x in sorted({x for x, _ in points}) if log_x else [x for x in _round_marks(high) if x <= high]:
        label = _short(x)
        left = min(across(x) - _LETTER * len(label) / 2, _WIDTH - _LETTER * len(label))
        _line(image, across(x), up(0), across(x), up(0) + 4, _AXIS)
        if left >= free_from:
            _text(image, int(left), _HEIGHT - _BOTTOM + 10, label)
            free_from = left + _LETTER * (len(label) + 1)
    _text(image, _LEFT, 8, title)
    _text(image, _LEFT, _HEIGHT - 22, below)
    place = _LEFT
    for number, (name, line) in enumerate(lines.items()):
        colour = COLOURS[number % len(COLOURS)]
        ordered = sorted(line)
        for (x1, y1), (x2, y2) in itertools.pairwise(ordered):
            _line(image, across(x1), up(y1), across(x2), up(y2), colour, thick=True)
        if len(lines) > 1:
            _text(image, place, 30, name, colour)
            place += _LETTER * (len(name) + 2)


def _round_marks(high: float) -> list[float]:
    """From 0 in steps of 1, 2 or 5 times a power of ten, to the first at or above `high`: four to eight of them."""
    high = max(high, 1e-9)
    power = 10.0 ** math.floor(math.log10(high / 4))
    step = power * max(part for part in (1, 2, 5) if power * part <= high / 4 * 1.0000001)
    return [step * number for number in range(math.ceil(high / step - 1e-6) + 1)]


def _short(value: float) -> str:
    for unit in ("", "K", "M", "G"):
        if abs(value) < 999.5:
            return f"{value:.3g}{unit}"
        value /= 1000
    return f"{value:.3g}T"


def _line(
    image: npt.NDArray[np.uint8],
    x1: float,
    y1: float,
    x2: float,
    y2: float,
    colour: tuple[int, int, int],
    *,
    thick: bool = False,
) -> None:
    steps = int(max(abs(x2 - x1), abs(y2 - y1))) * 2 + 2
    xs = np.clip(np.linspace(x1, x2, steps).round().astype(int), 0, image.shape[1] - 1)
    ys = np.clip(np.linspace(y1, y2, steps).round().astype(int), 0, image.shape[0] - 1)
    image[ys, xs] = colour
    if thick:
        image[np.clip(ys + 1, 0, image.shape[0] - 1), xs] = colour


def _text(
    image: npt.NDArray[np.uint8], left: int, top: int, text: str, colour: tuple[int, int, int] = (40, 40, 40)
) -> None:
    for place, letter in enumerate(text.upper()):
        columns = bytes.fromhex(_GLYPHS.get(letter, _GLYPHS["-"]))
        for column, bits in enumerate(columns):
            for row in range(7):
                if bits >> row & 1:
                    x, y = left + (place * 6 + column) * _SCALE, top + row * _SCALE
                    image[max(0, y) : y + _SCALE, max(0, x) : x + _SCALE] = colour
