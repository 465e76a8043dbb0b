"""A picture of coloured dots as a PNG file, from the standard library alone: a GPU host may have nothing that draws.

    signature | IHDR (size, 8 bits, RGB) | IDAT (zlib: for each row a zero, "no filter", and its dots) | IEND

each chunk being its length, name, data and CRC-32. Text is drawn in letters of 3 x 5 dots, capitals only.
"""

import struct
import zlib
from pathlib import Path
from typing import Final

Colour = tuple[int, int, int]
WHITE: Final[Colour] = (255, 255, 255)
# Five rows of three dots for each letter, the topmost first: the bits of an octal digit.
_LETTERS: Final = {
    "0": "75557", "1": "26227", "2": "71747", "3": "71717", "4": "55711", "5": "74717", "6": "74757", "7": "71122",
    "8": "75757", "9": "75717", "A": "75755", "B": "65656", "C": "74447", "D": "65556", "E": "74647", "F": "74644",
    "G": "74557", "H": "55755", "I": "72227", "J": "11157", "K": "55655", "L": "44447", "M": "57755", "N": "65555",
    "O": "75557", "P": "75744", "Q": "75571", "R": "65655", "S": "74717", "T": "72222", "U": "55557", "V": "55552",
    "W": "55775", "X": "55255", "Y": "55222", "Z": "71247", ".": "00002", ",": "00024", "-": "00700", "/": "11244",
    "%": "51245", ":": "02020", "(": "12221", ")": "42224", "=": "07070", "+": "02720", " ": "00000",
}  # fmt: skip
LETTER_WIDTH: Final = 4
LETTER_HEIGHT: Final = 5


class Picture:
    """width x height dots; (0, 0) is the upper left one. What is drawn outside is left out."""

    def __init__(self, width: int, height: int, background: Colour = WHITE) -> None:
        self.width, self.height = width, height
        self._dots = bytearray(bytes(background) * (width * height))

    def dot(self, x: int, y: int, colour: Colour) -> None:
        """One dot."""
        if 0 <= x < self.width and 0 <= y < self.height:
            at = 3 * (y * self.width + x)
            self._dots[at : at + 3] = bytes(colour)

    def at(self, x: int, y: int) -> Colour:
        """The colour of a dot."""
        red, green, blue = self._dots[3 * (y * self.width + x) :][:3]
        return red, green, blue

    def line(self, start: tuple[int, int], end: tuple[int, int], colour: Colour, thickness: int = 1) -> None:
        """Straight, both ends included."""
        (x, y), (last_x, last_y) = start, end
        steps = max(abs(last_x - x), abs(last_y - y), 1)
        for step in range(steps + 1):
            column, row = x + round((last_x - x) * step / steps), y + round((last_y - y) * step / steps)
            for beside in range(thickness * thickness):
                self.dot(column + beside % thickness, row + beside // thickness, colour)

    def box(self, x: int, y: int, width: int, height: int, colour: Colour) -> None:
        """Filled."""
        for row in range(y, y + height):
            self.line((x, row), (x + width - 1, row), colour)

    def text(self, x: int, y: int, words: str, colour: Colour, scale: int = 2, anchor: float = 0.0) -> None:
        """anchor: 0 when x is the left end, 1 when it is the right one. Letters that are not known are left blank."""
        left = x - round(anchor * (len(words) * LETTER_WIDTH - 1) * scale)
        for index, letter in enumerate(words.upper()):
            for row, bits in enumerate(_LETTERS.get(letter, _LETTERS[" "])):
                for column in range(3):
                    if int(bits, 8) >> (2 - column) & 1:
                        place = left + (index * LETTER_WIDTH + column) * scale
                        self.box(place, y + row * scale, scale, scale, colour)

    def write(self, path: Path) -> None:
        """The file, written over."""
        width = 3 * self.width
        rows = b"".join(b"\0" + self._dots[row * width : (row + 1) * width] for row in range(self.height))
        header = struct.pack(">IIBBBBB", self.width, self.height, 8, 2, 0, 0, 0)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(
            b"\x89PNG\r\n\x1a\n"
            + _chunk(b"IHDR", header)
            + _chunk(b"IDAT", zlib.compress(rows, 9))
            + _chunk(b"IEND", b"")
        )


def _chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
