"""The picture's file, read back by the format's own rules."""

import struct
import zlib
from pathlib import Path

import pytest

from infra.bench.gpu.curve import BOTTOM, LEFT, PANEL, TOP, Panel, draw
from infra.bench.gpu.png import WHITE, Picture

RED = (200, 10, 10)


def read(path: Path) -> tuple[int, int, list[bytes]]:
    """Width, height and rows of a file; every length, sum and order is checked."""
    data = path.read_bytes()
    assert data[:8] == b"\x89PNG\r\n\x1a\n"
    at, chunks = 8, list[tuple[bytes, bytes]]()
    while at < len(data):
        (length,) = struct.unpack(">I", data[at : at + 4])
        name, body = data[at + 4 : at + 8], data[at + 8 : at + 8 + length]
        assert struct.unpack(">I", data[at + 8 + length : at + 12 + length]) == (zlib.crc32(name + body),)
        chunks.append((name, body))
        at += 12 + length
    assert [name for name, _ in chunks] == [b"IHDR", b"IDAT", b"IEND"]
    width, height, depth, kind, *rest = struct.unpack(">IIBBBBB", chunks[0][1])
    assert (depth, kind, rest) == (8, 2, [0, 0, 0])
    dots = zlib.decompress(chunks[1][1])
    assert len(dots) == height * (1 + 3 * width)
    rows = [dots[row * (1 + 3 * width) :][: 1 + 3 * width] for row in range(height)]
    assert all(row[0] == 0 for row in rows)
    return width, height, [row[1:] for row in rows]


def test_what_is_drawn_is_in_the_file(tmp_path: Path) -> None:
    picture = Picture(7, 5)
    picture.line((1, 1), (5, 3), RED)
    picture.dot(7, 0, RED)  # outside
    picture.dot(-1, 4, RED)
    picture.write(tmp_path / "new" / "picture.png")
    width, height, rows = read(tmp_path / "new" / "picture.png")
    assert (width, height) == (7, 5)
    red = {(x, y) for y, row in enumerate(rows) for x in range(7) if row[3 * x : 3 * x + 3] == bytes(RED)}
    assert red == {(1, 1), (2, 1), (2, 2), (3, 2), (4, 2), (4, 3), (5, 3)} & red
    assert {(1, 1), (3, 2), (5, 3)} <= red
    assert len(red) == 5
    assert picture.at(0, 0) == WHITE


def test_letters_are_where_they_should_be() -> None:
    picture = Picture(30, 12)
    picture.text(2, 1, "l", RED)
    assert [picture.at(2, 1), picture.at(4, 1), picture.at(4, 9), picture.at(6, 10), picture.at(8, 9)] == [
        RED, WHITE, RED, RED, WHITE,
    ]  # fmt: skip
    ends = Picture(30, 12)
    ends.text(28, 1, "1l", RED, anchor=1.0)
    assert any(ends.at(27, y) == RED for y in range(12))
    assert all(ends.at(28, y) == WHITE for y in range(12))
    plain = Picture(30, 12)
    plain.text(2, 1, "\N{SNOWMAN}", RED)
    assert all(plain.at(x, y) == WHITE for x in range(30) for y in range(12))


def test_a_curve_has_a_dot_for_each_step_and_a_tick_for_each_arrival(tmp_path: Path) -> None:
    steps = [(0.0, 5.0), (0.5, 2.5), (1.0, 10.0)]
    assert draw(tmp_path / "curve.png", "title", [Panel("none", [(0.2, 1.0)]), Panel("one", steps, 0.4, [0.5])])
    width, height, rows = read(tmp_path / "curve.png")
    assert height == TOP + 2 * PANEL + 6

    def blue(x: int, y: int) -> bool:
        return rows[y][3 * x : 3 * x + 3] == bytes((11, 110, 153))

    floor, right = TOP + 2 * PANEL - BOTTOM, width - 20
    most = PANEL - BOTTOM - 18
    assert blue(LEFT, floor - round(most * 0.5))
    assert blue(LEFT + round((right - LEFT) * 0.5), floor - round(most * 0.25))
    assert blue(right, floor - most)
    tick = LEFT + round((right - LEFT) * 0.5)
    assert rows[floor + 4][3 * tick : 3 * tick + 3] == bytes((194, 87, 26))


@pytest.mark.parametrize("panels", [[], [Panel("none", [])]])
def test_nothing_is_drawn_of_nothing(panels: list[Panel], tmp_path: Path) -> None:
    assert not draw(tmp_path / "curve.png", "title", panels)
    assert not (tmp_path / "curve.png").exists()
