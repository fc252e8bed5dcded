"""Pictures that the measurement of a model with a projector draws, each with a question about it."""

import struct
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

Pixels = npt.NDArray[np.uint8]

SIDE = 224
"""Width and height of a picture in pixels."""
_WHITE, _BLACK, _RED, _GREEN = (255, 255, 255), (0, 0, 0), (220, 30, 30), (20, 150, 60)
_BLUE, _NIGHT, _YELLOW = (30, 70, 210), (25, 30, 80), (250, 210, 40)
_DIGITS = {"4": ("#..#", "#..#", "####", "...#", "...#"), "2": ("####", "...#", "####", "#...", "####")}
_Y, _X = np.mgrid[0:SIDE, 0:SIDE]


@dataclass(frozen=True)
class Picture:
    """A picture. `draw` gives its pixels, (height, width, 3)."""

    question: str
    draw: Callable[[], Pixels]


def _canvas(color: tuple[int, int, int]) -> Pixels:
    return np.full((SIDE, SIDE, 3), color, np.uint8)


def _disc(pixels: Pixels, x: int, y: int, radius: int, color: tuple[int, int, int]) -> None:
    pixels[(_X - x) ** 2 + (_Y - y) ** 2 <= radius**2] = color


def _circle() -> Pixels:
    pixels = _canvas(_WHITE)
    _disc(pixels, 112, 112, 70, _RED)
    return pixels


def _square_and_triangle() -> Pixels:
    pixels = _canvas(_WHITE)
    pixels[72:152, 20:100] = _BLUE
    pixels[(_Y >= 72) & (_Y < 152) & (np.abs(_X - 164) * 2 <= _Y - 72)] = _GREEN
    return pixels


def _dots() -> Pixels:
    pixels = _canvas(_WHITE)
    for x, y in ((60, 60), (164, 70), (70, 160), (160, 164)):
        _disc(pixels, x, y, 18, _BLACK)
    return pixels


def _number() -> Pixels:
    pixels = _canvas(_WHITE)
    for position, digit in enumerate("42"):
        rows = np.array([[cell == "#" for cell in row] for row in _DIGITS[digit]])
        ink = np.kron(rows, np.ones((24, 20), bool))
        left = 24 + 96 * position
        pixels[52 : 52 + ink.shape[0], left : left + ink.shape[1]][ink] = _BLACK
    return pixels


def _stripes() -> Pixels:
    pixels = _canvas(_WHITE)
    pixels[_Y // 28 % 2 == 0] = _BLACK
    return pixels


def _night() -> Pixels:
    pixels = _canvas(_NIGHT)
    _disc(pixels, 160, 60, 30, _YELLOW)
    pixels[160 + 20 * np.sin(_X / 30) < _Y] = _GREEN
    return pixels


PICTURES = (
    Picture("Which colour is the circle?", _circle),
    Picture("Which shape is on the left?", _square_and_triangle),
    Picture("How many dots are there?", _dots),
    Picture("Which number is written here?", _number),
    Picture("Describe the picture in one sentence.", _stripes),
    Picture("What is shown in this picture?", _night),
)


def write_png(path: Path, pixels: Pixels) -> None:
    """Write RGB pixels (height, width, 3) as a PNG. Raises OSError."""
    height, width, _ = pixels.shape
    rows = b"".join(b"\0" + row.tobytes() for row in pixels)
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunks = ((b"IHDR", header), (b"IDAT", zlib.compress(rows)), (b"IEND", b""))
    parts = (
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)) for kind, data in chunks
    )
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(parts))
