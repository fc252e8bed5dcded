import math

from hypothesis import given
from hypothesis import strategies as st

from quantkit.report.labels import overlap, place

FRAME = (0.0, 0.0, 300.0, 220.0)
within = st.tuples(st.floats(10, 290), st.floats(10, 210))


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
