"""The plot of divergence against size: well-formed, every file on it, smaller is lower and further left."""

import re
from itertools import pairwise
from xml.etree import ElementTree

import pytest

from benchmarks.pareto import Point, pareto_svg

_SVG = "{http://www.w3.org/2000/svg}"
KL = {"imatrix": 0.101, "feedback": 0.1, "best": 0.098, "plain": 0.104}


def test_every_file_is_on_the_plot_where_its_figures_say() -> None:
    files = [Point(90.0, 0.2, "q2_k"), Point(105.0, 0.04, "q4_k_m"), Point(145.0, 0.004, "q8_0")]
    svg = pareto_svg({"ours & theirs": files, "other": [Point(92.0, 0.1, "q4_0 <x>")]}, "a < b")
    root = ElementTree.fromstring(svg)
    circles = [(float(c.attrib["cx"]), float(c.attrib["cy"])) for c in root.iter(f"{_SVG}circle")]
    assert len(circles) == 4
    assert sorted(circles[:3]) == circles[:3] and sorted(y for _, y in circles[:3]) == [y for _, y in circles[:3]]
    assert circles[0][0] < circles[3][0] < circles[1][0] and circles[0][1] < circles[3][1] < circles[1][1]
    words = {text.text for text in root.iter(f"{_SVG}text")}
    assert {"a < b", "ours & theirs", "q4_0 <x>", "q8_0"} <= words
    assert len(svg.encode()) < 200_000


def test_one_file_alone_has_a_plot() -> None:
    circles = list(ElementTree.fromstring(pareto_svg({"a": [Point(5, 0.1, "x")]}, "t")).iter(f"{_SVG}circle"))
    assert len(circles) == 1


def test_labels_of_files_of_one_size_stand_in_the_order_of_their_points() -> None:
    files = {name: [Point(90.0, kl, name), Point(140.0, 0.01, "q8_0")] for name, kl in KL.items()}
    root = ElementTree.fromstring(pareto_svg(files, "t"))
    heights = {}
    for text in root.iter(f"{_SVG}text"):
        if text.text in KL and float(text.attrib["x"]) < 600:  # the names of the series are at the right edge
            heights[text.text] = float(text.attrib["y"])
    assert sorted(heights, key=lambda name: heights[name]) == sorted(KL, key=lambda name: -KL[name])
    rows = sorted(heights.values())
    assert all(below - above > 10 for above, below in pairwise(rows))


@pytest.mark.parametrize(("scheme", "page"), [("light", "#ffffff"), ("dark", "#0d1117")])
def test_words_of_each_series_can_be_read_on_a_light_and_on_a_dark_page(scheme: str, page: str) -> None:
    light, dark = pareto_svg({"a": [Point(5, 0.1, "x")]}, "t").partition("@media(prefers-color-scheme:dark)")[::2]
    colors = re.findall(r"\.s\d\{fill:(#[0-9a-f]{6})\}", light if scheme == "light" else dark)
    assert len(colors) == 4
    assert min(contrast(color, page) for color in colors) >= 4.5


def contrast(one: str, other: str) -> float:
    """Of two colours, as WCAG 2 defines it."""
    darker, lighter = sorted(luminance(color) for color in (one, other))
    return (lighter + 0.05) / (darker + 0.05)


def luminance(color: str) -> float:
    parts = [int(color[at : at + 2], 16) / 255 for at in (1, 3, 5)]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return sum(weight * part for weight, part in zip((0.2126, 0.7152, 0.0722), linear, strict=True))
