"""The plots' SVG is read as XML: what they show is the document's. That they are the same each time is test_write's."""

import copy
import math
import re
import struct
import sys
from typing import Any
from xml.etree import ElementTree

import pytest

from quantkit.errors import MissingExtraError
from quantkit.report.drawing import ROLES, Plot, distinct, short
from quantkit.report.plot_perplexity import pareto
from quantkit.report.plots import plots
from tests.report.sample import sample

NAMES = [
    *("perplexity-size", "perplexity-size-2", "kl-divergence", "kl-divergence-2"),
    *("memory", "memory-2", "memory-3", "memory-4", "memory-5"),
    *("tensor-errors", "tensor-errors-2", "tensor-errors-3", "tensor-errors-4"),
]


@pytest.fixture(scope="module")
def drawn(sample_plots: list[Plot]) -> dict[str, Plot]:
    return {plot.name: plot for plot in sample_plots}


def texts(plot: Plot) -> list[str]:
    return ["".join(text.itertext()) for text in ElementTree.fromstring(plot.inline).iter("text")]


def test_every_measurement_of_the_document_has_its_plot(drawn: dict[str, Plot]) -> None:
    assert list(drawn) == NAMES


def test_each_is_an_svg_of_its_own_and_a_png_of_1140_pixels(drawn: dict[str, Plot]) -> None:
    for plot in drawn.values():
        assert ElementTree.fromstring(plot.svg).tag == "{http://www.w3.org/2000/svg}svg"
        assert "var(--" not in plot.svg
        assert plot.png.startswith(b"\x89PNG")
        assert struct.unpack(">I", plot.png[16:20])[0] == 1140


def test_a_plot_on_the_page_has_no_color_but_the_pages_own_and_the_heat_maps(drawn: dict[str, Plot]) -> None:
    for plot in drawn.values():
        assert not set(re.findall(r"#[0-9a-f]{6}", plot.inline)) & set(ROLES), plot.name
        assert plot.group == "tensors" or not re.findall(r"#[0-9a-f]{6}", plot.inline), plot.name
        assert "var(--ink)" in plot.inline


def test_ids_of_all_plots_are_different(drawn: dict[str, Plot]) -> None:
    ids = [text for plot in drawn.values() for text in re.findall(r' id="([^"]+)"', plot.inline)]
    assert len(ids) == len(set(ids))
    for plot in drawn.values():
        referred = re.findall(r'(?:url\(|href=")#([^)"]+)', plot.inline)
        assert set(referred) <= set(re.findall(r' id="([^"]+)"', plot.inline))


def test_perplexity_names_every_model_and_kl_every_candidate(drawn: dict[str, Plot]) -> None:
    for model in sample()["models"]:
        assert model["label"] in texts(drawn["perplexity-size"])
        assert (model["label"] in texts(drawn["kl-divergence-2"])) == (model["role"] == "candidate")


def test_points_lie_where_size_and_perplexity_say(drawn: dict[str, Plot]) -> None:
    """On logarithmic axes a point's distance to another is the ratio of their figures."""
    uses = [
        (float(use.get("x", "0")), float(use.get("y", "0")), use.get("style", ""))
        for use in ElementTree.fromstring(drawn["perplexity-size-2"].inline).iter("use")
        if "stroke: var(--page)" in use.get("style", "")
    ]
    models = sample()["models"]
    assert len(uses) == len(models)
    sizes = [math.log(model["bytes"]) for model in models]
    perplexities = [math.log(model["quality"][1]["perplexity"]["value"]) for model in models]
    for one in range(1, len(models)):
        across = (uses[one][0] - uses[0][0]) / (uses[-1][0] - uses[0][0])
        assert across == pytest.approx((sizes[one] - sizes[0]) / (sizes[-1] - sizes[0]), abs=1e-3)
        up = (uses[one][1] - uses[0][1]) / (uses[-1][1] - uses[0][1])
        expected = (perplexities[one] - perplexities[0]) / (perplexities[-1] - perplexities[0])
        assert up == pytest.approx(expected, abs=1e-3)


def test_a_label_has_the_color_of_its_point_and_stands_in_the_order_of_the_points() -> None:
    """Five files of one size, whose labels have no room beside their points."""
    document = sample()
    del document["texts"][1:]
    for number, model in enumerate(document["models"]):
        model.update(memory=[], tensor_errors=[], bytes=91_731_000)
        model["quality"] = model["quality"][:1]
        model["quality"][0].pop("kl", None)
        model["quality"][0]["perplexity"] = {"value": 22.3 + 0.1 * (number * 2 % 5), "error": None}
    (plot,) = plots(document)
    labels = [model["label"] for model in document["models"]]
    words = {"".join(text.itertext()): text for text in ElementTree.fromstring(plot.inline).iter("text")}
    heights = [float(words[label].get("y", "nan")) for label in labels]
    by_perplexity = sorted(range(5), key=lambda number: -(number * 2 % 5))
    assert sorted(heights) == [heights[number] for number in by_perplexity]
    assert "fill: var(--ink)" in words[labels[0]].get("style", "")
    for number, label in enumerate(labels[1:], 1):
        assert f"fill: var(--series-text-{number})" in words[label].get("style", "")


def test_many_points_have_numbers_by_perplexity_and_their_names_stand_in_a_key() -> None:
    document = sample()
    del document["texts"][1:]
    reference, candidate = document["models"][:2]
    reference["quality"] = reference["quality"][:1]
    candidate.update(memory=[], tensor_errors=[], quality=candidate["quality"][:1])
    document["models"] = [reference]
    for number in range(14):
        model = copy.deepcopy(candidate)
        model.update(label=f"file-{number}", path=f"file-{number}.gguf", bytes=90_000_000 + 700_000 * number)
        model["quality"][0].update(perplexity={"value": 30 + 0.2 * (number * 5 % 14), "error": None}, difference=None)
        model["quality"][0].pop("kl", None)
        document["models"].append(model)
    plot = plots(document)[0]
    words = texts(plot)
    assert reference["label"] in words
    assert [str(number) for number in range(1, 15) if str(number) not in words] == []
    by_perplexity = sorted(range(14), key=lambda number: number * 5 % 14)
    named = [f"{place}  file-{number}" for place, number in enumerate(by_perplexity, 1)]
    assert [text for text in words if "file-" in text] == named
    assert "numbered by perplexity" in plot.caption


def test_the_pareto_line_is_of_those_no_other_beats() -> None:
    points = [(1.0, 9.0), (2.0, 5.0), (2.0, 6.0), (3.0, 5.0), (4.0, 4.0), (5.0, 7.0)]
    expected = [one for one in points if not any(o != one and o[0] <= one[0] and o[1] <= one[1] for o in points)]
    assert pareto(points) == sorted(expected) == [(1.0, 9.0), (2.0, 5.0), (4.0, 4.0)]


def test_memory_says_the_sum_of_every_device(drawn: dict[str, Plot]) -> None:
    assert {"269 MB", "462 MB", "356 MB", "119 MB"} - set(texts(drawn["memory"])) == {"269 MB"}


def test_models_loaded_once_are_compared_in_one_picture() -> None:
    document = sample()
    document["texts"] = []
    for model in document["models"]:
        model["memory"] = model["memory"][:1]
        del model["quality"]
        model.pop("tensor_errors", None)
    (plot,) = plots(document)
    for label in ("bf16 · 0 · CPU", "q2_k · 0 · CPU", "462 MB", "281 MB"):
        assert label in texts(plot)


def test_a_heat_map_has_a_cell_for_every_weight_and_names_the_worst(drawn: dict[str, Plot]) -> None:
    errors = [error for error in sample()["models"][1]["tensor_errors"] if error["layer"] is not None]
    worst = max(errors, key=lambda error: error["error"])
    assert f"{worst['kind']} of layer {worst['layer']}" in drawn["tensor-errors"].note
    cells = re.findall(r"fill: #[0-9a-f]{6}; stroke: var\(--page\)", drawn["tensor-errors"].inline)
    assert len(cells) == len(errors)


def test_what_was_not_measured_has_no_plot() -> None:
    document = sample()
    document["texts"] = document["texts"][:1]
    for model in document["models"]:
        model["quality"] = model["quality"][:1]
        model.pop("memory", None)
        model.pop("tensor_errors", None)
        for quality in model["quality"]:
            quality.get("kl", {}).pop("histogram", None)
    (only,) = plots(document)
    assert only.name == "perplexity-size"
    document["models"] = document["models"][:1]
    assert plots(document) == []
    assert plots({}) == []


def identical(document: dict[str, Any]) -> None:
    """Every candidate is the reference itself: all divergence in the first bin, no difference, no error of weights."""
    for model in document["models"][1:]:
        model["bytes"] = document["models"][0]["bytes"]
        for quality, own in zip(model["quality"], document["models"][0]["quality"], strict=True):
            quality["perplexity"] = own["perplexity"]
            quality["perplexity_difference"] = quality["kl"]["mean"] = {"value": 0.0, "error": 0.0}
            quality["kl"].update(dict.fromkeys(("mean", "error", "median", "p90", "p99", "p999", "max"), 0.0))
            counts = quality["kl"]["histogram"]["counts"]
            quality["kl"]["histogram"]["counts"] = [sum(counts), *[0] * (len(counts) - 1)]
        for error in model["tensor_errors"]:
            error["error"] = 0.0


def extreme(document: dict[str, Any]) -> None:
    for number, model in enumerate(document["models"]):
        model["bytes"] = 10 ** (2 + 3 * number)
        for quality in model["quality"]:
            quality["perplexity"] = {"value": 10.0 ** (2 * number), "error": 10.0 ** (2 * number)}
            if "perplexity_difference" in quality:
                quality["perplexity_difference"] = {"value": 10.0 ** (2 * number), "error": 10.0 ** (2 * number)}
        for row in model["memory"]:
            for device in row["devices"]:
                device.update(weights=0, kv=0, compute=0)


def many(document: dict[str, Any]) -> None:
    model = {**document["models"][2], "memory": [], "tensor_errors": []}
    document["models"] += [{**model, "label": f"a-rather-long-label-of-model-{i}"} for i in range(16)]


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(
    "alter", [identical, extreme, pytest.param(many, marks=pytest.mark.full)], ids=["identical", "extreme", "many"]
)
def test_unusual_figures_are_drawn_too(alter: Any) -> None:
    document = sample()
    alter(document)
    for plot in plots(document):
        for number in re.findall(r' (?:x|y)="([^"]+)"', plot.inline):
            assert abs(float(number)) < 1e5, plot.name


_LONG = "Qwen2.5-Coder-1.5B-Instruct"


@pytest.mark.parametrize(
    "labels",
    [
        [f"{_LONG}-Q4_K_M-imatrix-wiki.gguf", f"{_LONG}-Q5_K_M-imatrix-wiki.gguf", "Q8_0"],
        [f"{_LONG}-{number}-{_LONG}" for number in range(12)],
        ["a" * 30 + "b" * 30, "a" * 31 + "b" * 29],
        ["m" * 22 + "1" + "m" * 22, "m" * 22 + "m" * 22],
        ["a" * 12 + "b" * 12 + "1" + "b" * 12 + "a" * 12, "a" * 12 + "c" + "b" * 11 + "2" + "b" * 12 + "a" * 12],
        ["x" * 40 + "12345678901" + digit + "y" * 40 + digit + "1234567890" + "z" * 40 for digit in "abc"],
        # the parts that differ are alike at their ends, too
        ["a" * 20 + "1" + "b" * 20 + digit + "b" * 20 + "1" + "a" * 20 for digit in "23"] + ["a" * 21 + "c" + "a" * 21],
    ],
)
def test_different_labels_stay_different_when_they_are_shortened(labels: list[str]) -> None:
    shortened = distinct(labels, 22)
    assert len(set(shortened)) == len(labels)
    assert max(map(len, shortened)) <= 22


def test_labels_that_differ_at_an_end_or_are_equal_are_shortened_in_the_middle() -> None:
    labels = [f"{_LONG}-Q4_0", f"{_LONG}-Q8_0", f"{_LONG}-Q8_0", "short"]
    assert distinct(labels, 22) == [short(label, 22) for label in labels]


def test_two_models_of_a_plot_have_different_labels() -> None:
    document = sample()
    for model, kind in zip(document["models"][1:3], ("Q4_K_M", "Q5_K_M"), strict=True):
        model["label"] = f"{_LONG}-{kind}-imatrix-wiki.gguf"
    for plot in plots(document):
        if plot.name in ("perplexity-size", "kl-divergence"):
            assert any("Q4_K_M" in text for text in texts(plot)) and any("Q5_K_M" in text for text in texts(plot))


def test_without_matplotlib_one_sentence_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'quantkit\[report\]'"):
        plots(sample())
