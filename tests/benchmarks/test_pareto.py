"""The plot of divergence against size: well-formed, every file on it, smaller is lower and further left."""

from xml.etree import ElementTree

from benchmarks.pareto import Point, pareto_svg

_SVG = "{http://www.w3.org/2000/svg}"


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
