import math
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from quantkit.report.labels import leader, overlap, place

FRAME = (0.0, 0.0, 300.0, 220.0)
within = st.tuples(st.floats(10, 290), st.floats(10, 210))


@settings(max_examples=25, deadline=None)
@given(st.lists(st.tuples(within, st.floats(15, 120)), min_size=1, max_size=12))
def test_labels_never_overlap_each_other_a_mark_or_the_edge(drawn: list[tuple[tuple[float, float], float]]) -> None:
    points = [point for point, _ in drawn]
    sizes = [(width, 14.0) for _, width in drawn]
    marks = [(x - 5, y - 5, x + 5, y + 5) for x, y in points]
    boxes = place(points, sizes, FRAME, marks)
    placed = [box for box in boxes if box is not None]
    assert placed
    for number, box in enumerate(placed):
        assert FRAME[0] <= box[0] and FRAME[1] <= box[1] and box[2] <= FRAME[2] and box[3] <= FRAME[3]
        assert not any(overlap(box, other) for other in [*placed[:number], *placed[number + 1 :], *marks])


def test_eight_points_in_one_spot_all_keep_their_labels() -> None:
    points = [(150.0 + step, 110.0 + step) for step in range(8)]
    marks = [(x - 5, y - 5, x + 5, y + 5) for x, y in points]
    boxes = place(points, [(60.0, 14.0)] * 8, FRAME, marks)
    assert None not in boxes


def test_a_lone_label_is_beside_its_point() -> None:
    (box,) = place([(150.0, 110.0)], [(40.0, 14.0)], FRAME, [(145.0, 105.0, 155.0, 115.0)])
    assert box is not None
    nearest = (min(max(150.0, box[0]), box[2]), min(max(110.0, box[1]), box[3]))
    assert math.dist(nearest, (150.0, 110.0)) < 12


def test_a_label_without_room_is_left_out() -> None:
    assert place([(150.0, 110.0)], [(400.0, 14.0)], FRAME, []) == [None]


@settings(max_examples=25, deadline=None)
@given(st.lists(st.tuples(within, st.floats(15, 120)), min_size=2, max_size=8))
def test_of_two_labels_one_above_the_other_the_upper_one_is_the_upper_points(
    drawn: list[tuple[tuple[float, float], float]],
) -> None:
    points = [point for point, _ in drawn]
    boxes = place(points, [(width, 14.0) for _, width in drawn], FRAME, [])
    labels = [(point, box) for point, box in zip(points, boxes, strict=True) if box is not None]
    for (_, height), box in labels:
        for (_, other_height), other in labels:
            if box[0] < other[2] and other[0] < box[2] and box[1] >= other[3]:
                assert height >= other_height


@pytest.mark.parametrize("x", [40.0, 150.0, 260.0])
@pytest.mark.parametrize("apart", [2.0, 6.0, 13.0])
def test_labels_of_points_of_one_size_stand_in_the_order_of_the_points(x: float, apart: float) -> None:
    points = [(x, 110 + apart * number) for number in (2, 0, 3, 1, 4)]
    marks = [(x - 5, y - 5, x + 5, y + 5) for x, y in points]
    boxes = [box for box in place(points, [(100.0, 14.0)] * 5, FRAME, marks) if box is not None]
    assert len(boxes) == 5
    by_label = sorted(range(5), key=lambda number: boxes[number][1])
    assert [points[number] for number in by_label] == sorted(points)


def tangles(points: list[tuple[float, float]], boxes: list[tuple[float, float, float, float]]) -> list[tuple[int, int]]:
    """The pairs of a leader and another label through which it passes, by 51 points of the leader."""
    pairs = []
    for number, (point, box) in enumerate(zip(points, boxes, strict=True)):
        start, end = leader(point, box)
        steps = [tuple(a + (b - a) * part / 50 for a, b in zip(start, end, strict=True)) for part in range(51)]
        for other, label in enumerate(boxes):
            if other != number and any(label[0] < x < label[2] and label[1] < y < label[3] for x, y in steps):
                pairs.append((number, other))
    return pairs


def test_no_leader_passes_through_another_label_where_there_is_room() -> None:
    points = [(90.0 + 15 * number, 110.0 + 3 * side) for number in range(3) for side in (0, 1)]
    marks = [(x - 5, y - 5, x + 5, y + 5) for x, y in points]
    boxes = [box for box in place(points, [(80.0, 14.0)] * 6, FRAME, marks) if box is not None]
    assert len(boxes) == 6
    assert not tangles(points, boxes)


# of twelve files and their source in the plot of a report: where they stand, how wide their labels are, the front
# fmt: off
QUALITIES = (
    [(339, 65), (186, 66), (175, 68), (123, 78), (108, 97), (73, 107), (90, 128), (88, 138), (108, 108), (73, 149),
     (73, 117), (78, 253), (78, 170)],
    [24, 24, 24, 35, 86, 52, 41, 47, 35, 24, 75, 35, 63],
    [(73, 107), (108, 97), (123, 78), (175, 68), (186, 66), (339, 65)],
)
TYPES = (
    [(339, 65), (191, 65), (180, 66), (130, 69), (126, 70), (113, 71), (108, 81), (80, 82), (85, 81), (73, 254),
     (116, 78), (83, 90), (87, 122)],
    [24, 24, 24, 35, 35, 24, 35, 35, 35, 24, 35, 24, 35],
    [(73, 254), (80, 82), (85, 81), (108, 81), (113, 71), (126, 70), (130, 69), (180, 66), (191, 65), (339, 65)],
)
# fmt: on


@pytest.mark.parametrize(("at", "widths", "front"), [QUALITIES, TYPES])
def test_thirteen_labels_stand_near_their_points_and_no_leader_passes_through_one(
    at: list[tuple[int, int]], widths: list[int], front: list[tuple[int, int]]
) -> None:
    points = [(float(x), float(y)) for x, y in at]
    marks = [(x - 5, y - 5, x + 5, y + 5) for x, y in points]
    lines = [(38.0, 64.0, 374.0, 66.0)]
    for (x, y), (end_x, end_y) in pairwise(front):
        steps = [(x + (end_x - x) * part / 40, y + (end_y - y) * part / 40) for part in range(40)]
        lines += [(across - 2, up - 2, across + 2, up + 2) for across, up in steps]
    frame = (38.0, 35.0, 374.0, 294.0)
    boxes = [box for box in place(points, [(width, 12.0) for width in widths], frame, marks, lines) if box is not None]
    assert len(boxes) == 13
    assert not tangles(points, boxes)
    assert max(math.dist(*leader(point, box)) for point, box in zip(points, boxes, strict=True)) < 50
