"""Places the labels of points so that no label overlaps another, a mark or the edge, and none can be taken for another
point's. Geometry only, in any unit; y grows upwards."""

import math
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

Point = tuple[float, float]
Box = tuple[float, float, float, float]
"""left, bottom, right, top"""

_ANGLES = tuple(math.radians(degrees) for degrees in (35, 145, -35, -145, 90, -90, 0, 180))
_ROUNDS = 3
_SHUFFLES = 20  # orders beside the sorted ones in which labels are placed
_TANGLED = 24  # gaps of distance that a leader through another label costs


@dataclass(frozen=True)
class _Label:
    point: Point
    box: Box
    leader: tuple[Point, Point]


@dataclass(frozen=True)
class _Surroundings:
    frame: Box
    blocked: Sequence[Box]
    lines: Sequence[Box]
    gap: float


_Choices = Sequence[tuple[float, _Label]]
"""Places for one label with their costs, without regard to other labels, by cost."""


def place(
    points: Sequence[Point],
    sizes: Sequence[tuple[float, float]],
    frame: Box,
    blocked: Sequence[Box],
    lines: Sequence[Box] = (),
    *,
    gap: float = 5.0,
) -> list[Box | None]:
    """A box of each (width, height) of `sizes` near its point, inside `frame`, clear of `blocked` and of each other.

    Labels stand in the order of their points: of two labels one above the other, the upper one is the upper point's,
    and of two side by side, the left one is the left point's. A label avoids `lines`, and a leader avoids other labels,
    marks and leaders, if that costs little distance. A label without space is None; earlier points are preferred.
    """
    around = _Surroundings(frame, blocked, lines, gap)
    choices = [_choices(point, size, around) for point, size in zip(points, sizes, strict=True)]
    given = range(len(points))
    orders = [list(given)]
    for axis in (1, 0):
        along = sorted(given, key=lambda number, axis=axis: points[number][axis])  # type: ignore[misc]
        orders += [along, along[::-1]]
    shuffled = random.Random(0)
    orders += [shuffled.sample(given, len(given)) for _ in range(_SHUFFLES)]
    layouts = [_layout(choices, order, gap) for order in orders]
    return min(layouts, key=lambda layout: _rank(*layout))[0]


def leader(point: Point, box: Box) -> tuple[Point, Point]:
    """The shortest line from a point to its label's box."""
    return point, (min(max(point[0], box[0]), box[2]), min(max(point[1], box[1]), box[3]))


def overlap(one: Box, other: Box) -> bool:
    """Whether two boxes (left, bottom, right, top) overlap."""
    return one[0] < other[2] and other[0] < one[2] and one[1] < other[3] and other[1] < one[3]


def _layout(choices: Sequence[_Choices], order: Sequence[int], gap: float) -> tuple[list[Box | None], float]:
    """The boxes when labels are placed in `order`, each where it costs least, and the sum of the costs.

    Later rounds move each label to where it costs least among all others.
    """
    placed: dict[int, tuple[float, _Label]] = {}
    for _ in range(_ROUNDS):
        before = dict(placed)
        for number in order:
            others = [label for other, (_, label) in placed.items() if other != number]
            best = _cheapest(choices[number], others, gap)
            if best is not None:
                placed[number] = best
        if placed == before:
            break
    boxes = [placed[number][1].box if number in placed else None for number in range(len(choices))]
    return boxes, sum(cost for cost, _ in placed.values())


def _cheapest(choices: _Choices, others: Sequence[_Label], gap: float) -> tuple[float, _Label] | None:
    best: tuple[float, _Label] | None = None
    for alone, label in choices:
        if best is not None and alone >= best[0]:
            break
        if any(overlap(label.box, other.box) or _swapped(label, other, gap) for other in others):
            continue
        cost = alone + _TANGLED * gap * sum(_tangled(label, other) for other in others)
        if best is None or cost < best[0]:
            best = cost, label
    return best


def _rank(boxes: Sequence[Box | None], cost: float) -> tuple[int, int, float]:
    missing = [number for number, box in enumerate(boxes) if box is None]
    return len(missing), -sum(missing), cost


def _choices(point: Point, size: tuple[float, float], around: _Surroundings) -> _Choices:
    """Places inside the frame and clear of `blocked`; lines and marks below a label or its leader add to the cost."""
    marks = [box for box in around.blocked if not _contains(box, point)]
    choices: list[tuple[float, _Label]] = []
    for distance, box in _tries(point, *size, around):
        if _inside(box, around.frame) and not any(overlap(box, other) for other in around.blocked):
            label = _Label(point, box, leader(point, box))
            crossed = sum(overlap(box, line) for line in around.lines)
            # a leader through the mark of another point seems to be that point's
            crossed += 4 * sum(_meets(label.leader, mark) for mark in marks)
            choices.append((distance + 4 * around.gap * crossed, label))
    return sorted(choices, key=lambda choice: choice[0])


def _swapped(one: _Label, other: _Label, gap: float) -> bool:
    """Whether two labels stand in another order than their points."""
    across, up = one.point[0] - other.point[0], one.point[1] - other.point[1]
    label_across = one.box[0] + one.box[2] - other.box[0] - other.box[2]
    label_up = one.box[1] + one.box[3] - other.box[1] - other.box[3]
    if abs(across) < gap:
        return up * label_up < 0
    stacked = one.box[0] < other.box[2] and other.box[0] < one.box[2]
    in_a_row = one.box[1] < other.box[3] and other.box[1] < one.box[3]
    return (stacked and up * label_up < 0) or (in_a_row and across * label_across < 0)


def _tangled(one: _Label, other: _Label) -> bool:
    """Whether the leader of one label passes through the other label or its leader."""
    return _meets(one.leader, other.box) or _meets(other.leader, one.box) or _cross(one.leader, other.leader)


def _tries(point: Point, width: float, height: float, around: _Surroundings) -> Iterator[tuple[float, Box]]:
    """Boxes around the point in growing rings, nearest first, until a ring is larger than the frame."""
    (x, y), frame, gap = point, around.frame, around.gap
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
        distance = distance + gap if distance < 8 * gap else 1.2 * distance


def _inside(box: Box, frame: Box) -> bool:
    return box[0] >= frame[0] and box[1] >= frame[1] and box[2] <= frame[2] and box[3] <= frame[3]


def _contains(box: Box, point: Point) -> bool:
    return box[0] <= point[0] <= box[2] and box[1] <= point[1] <= box[3]


def _meets(line: tuple[Point, Point], box: Box) -> bool:
    """Whether a line has a part inside a box: the parts that are between its sides, and between its ends, intersect."""
    least, most = 0.0, 1.0
    for axis in (0, 1):
        start, length = line[0][axis], line[1][axis] - line[0][axis]
        low, high = box[axis], box[axis + 2]
        if length == 0:
            if not low < start < high:
                return False
            continue
        enters, leaves = sorted(((low - start) / length, (high - start) / length))
        least, most = max(least, enters), min(most, leaves)
    return least < most


def _cross(one: tuple[Point, Point], other: tuple[Point, Point]) -> bool:
    """Whether the ends of each line lie on different sides of the other."""
    return _side(one, other[0]) * _side(one, other[1]) < 0 and _side(other, one[0]) * _side(other, one[1]) < 0


def _side(line: tuple[Point, Point], point: Point) -> float:
    (x, y), (end_x, end_y) = line
    return (end_x - x) * (point[1] - y) - (end_y - y) * (point[0] - x)
