"""Places the labels of points so that no label overlaps another, a mark or the edge. Geometry only, in any unit."""

import math
from collections.abc import Iterator, Sequence

Box = tuple[float, float, float, float]
"""left, bottom, right, top"""

_ANGLES = tuple(math.radians(degrees) for degrees in (35, 145, -35, -145, 90, -90, 0, 180))


def place(
    points: Sequence[tuple[float, float]],
    sizes: Sequence[tuple[float, float]],
    frame: Box,
    blocked: Sequence[Box],
    lines: Sequence[Box] = (),
    *,
    gap: float = 5.0,
) -> list[Box | None]:
    """A box of each (width, height) of `sizes` near its point, inside `frame`, clear of `blocked` and of each other.

    A label avoids `lines` if that costs little distance. A label without space is None.
    """
    placed: list[Box | None] = []
    taken = list(blocked)
    for point, (width, height) in zip(points, sizes, strict=True):
        best: tuple[float, Box] | None = None
        for distance, box in _tries(point, width, height, frame, gap):
            if best is not None and distance >= best[0]:
                break
            if not _inside(box, frame) or any(overlap(box, other) for other in taken):
                continue
            cost = distance + 4 * gap * sum(overlap(box, line) for line in lines)
            if best is None or cost < best[0]:
                best = cost, box
        placed.append(best[1] if best else None)
        if best:
            taken.append(best[1])
    return placed


def overlap(one: Box, other: Box) -> bool:
    """Whether two boxes (left, bottom, right, top) overlap."""
    return one[0] < other[2] and other[0] < one[2] and one[1] < other[3] and other[1] < one[3]


def _tries(
    point: tuple[float, float], width: float, height: float, frame: Box, gap: float
) -> Iterator[tuple[float, Box]]:
    """Boxes around the point in growing rings, nearest first, until a ring is larger than the frame."""
    x, y = point
    distance = gap
    while distance < math.hypot(frame[2] - frame[0], frame[3] - frame[1]):
        angles = _ANGLES if distance < 4 * gap else [math.tau * step / 32 for step in range(32)]
        for angle in angles:
            across, up = math.cos(angle), math.sin(angle)
            # The side of the box that faces the point stays `distance` away from it, whatever the angle.
            middle_x = x + across * distance + (width / 2 * (1 if across > 0.2 else -1 if across < -0.2 else 0))
            middle_y = y + up * distance + (height / 2 * (1 if up > 0.8 else -1 if up < -0.8 else up))
            yield (
                distance,
                (middle_x - width / 2, middle_y - height / 2, middle_x + width / 2, middle_y + height / 2),
            )
        distance += gap


def _inside(box: Box, frame: Box) -> bool:
    return box[0] >= frame[0] and box[1] >= frame[1] and box[2] <= frame[2] and box[3] <= frame[3]
