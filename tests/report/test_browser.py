"""The page in a real browser, as a phone and a desktop show it, in light and dark."""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from quantkit.report.drawing import Plot
from quantkit.report.html import html
from quantkit.report.plots import plots
from tests.helpers.chromium import headless_chromium
from tests.report.sample import sample

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

WIDTHS = {"desktop": 1280, "phone": 390, "small phone": 320}
# Every test asks for what is wrong: an empty list is a page without faults.
_WIDER = """() => [...document.querySelectorAll("body *")].filter(element => {
    const box = element.getBoundingClientRect();
    return box.width && box.right > innerWidth + 0.5 && !element.closest(".box") && !element.ownerSVGElement;
}).map(element => element.outerHTML.slice(0, 120))"""
_CUT = """() => [...document.querySelectorAll("body *")].filter(element => {
    const flow = getComputedStyle(element);
    const hidden = ["hidden", "clip"].includes(flow.overflowX) || flow.textOverflow === "ellipsis";
    return !element.closest("svg") && hidden && element.scrollWidth > element.clientWidth;
}).map(element => element.outerHTML.slice(0, 120))"""
_OUTSIDE = """() => [...document.querySelectorAll("figure svg")].flatMap(svg => {
    const frame = svg.getBoundingClientRect();
    return [...svg.querySelectorAll("text")].filter(text => {
        const box = text.getBoundingClientRect();
        return box.left < frame.left - 1 || box.right > frame.right + 1
            || box.top < frame.top - 1 || box.bottom > frame.bottom + 1;
    }).map(text => text.closest("figure").id + ": " + text.textContent);
})"""
_OVERLAPPING = """() => [...document.querySelectorAll("figure svg")].flatMap(svg => {
    const texts = [...svg.querySelectorAll("text")].map(text => [text, text.getBoundingClientRect()]);
    const found = [];
    texts.forEach(([one, a], place) => texts.slice(place + 1).forEach(([other, b]) => {
        if (Math.min(a.right, b.right) - Math.max(a.left, b.left) > 1
            && Math.min(a.bottom, b.bottom) - Math.max(a.top, b.top) > 2.5)
            found.push(one.closest("figure").id + ": " + one.textContent + " / " + other.textContent);
    }));
    return found;
})"""
_SHOWN = """() => [...document.querySelectorAll("figure")].filter(figure => {
    const box = figure.querySelector("svg").getBoundingClientRect();
    const shapes = [...figure.querySelectorAll("svg path, svg use, svg text")];
    const drawn = shapes.filter(shape => shape.getBoundingClientRect().width > 0);
    return box.width > 250 && box.height > 60 && drawn.length > 10 && figure.checkVisibility();
}).map(figure => figure.id)"""
_CONTRAST = """() => {
    const numbers = color => color.match(/[0-9.]+/g).slice(0, 3).map(Number);
    const light = color => numbers(color).map(part => part / 255)
        .map(part => part <= 0.04045 ? part / 12.92 : ((part + 0.055) / 1.055) ** 2.4)
        .reduce((sum, part, place) => sum + part * [0.2126, 0.7152, 0.0722][place], 0);
    const page = light(getComputedStyle(document.body).backgroundColor);
    const faults = [];
    for (const text of document.querySelectorAll("svg text, p, td, th, li, h1, h2, h3, dt, dd, figcaption")) {
        const style = getComputedStyle(text);
        const own = light(text.closest("svg") ? style.fill : style.color);
        const ratio = (Math.max(own, page) + 0.05) / (Math.min(own, page) + 0.05);
        if (ratio < 4.5) faults.push(text.textContent + ": " + ratio.toFixed(2));
    }
    return faults;
}"""


@pytest.fixture(scope="module")
def browser() -> Iterator["Browser"]:
    with headless_chromium() as started:
        yield started


@pytest.fixture(scope="module")
def page_file(sample_plots: list[Plot], tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("page") / "report.html"
    file.write_text(html(sample(), sample_plots), "utf-8")
    return file


@pytest.fixture(scope="module")
def small_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One text, one load of each of two models, no errors of weights, and something flagged."""
    report = sample()
    report["flags"] = ["q8_0: perplexity changed by more than the limit of 0.01%"]
    del report["texts"][1:], report["models"][2:]
    for model in report["models"]:
        del model["quality"][1:], model["memory"][1:]
        model.pop("tensor_errors", None)
    file = tmp_path_factory.mktemp("small") / "report.html"
    file.write_text(html(report, plots(report)), "utf-8")
    return file


class Opened:
    """A page with what it complained of and asked the network for."""

    def __init__(self, page: "Page", file: Path) -> None:
        self.page, self.complaints, self.requests = page, list[str](), list[str]()
        page.on("console", lambda message: self.complaints.append(message.text))
        page.on("pageerror", lambda error: self.complaints.append(str(error)))
        page.on("request", lambda request: self.requests.append(request.url))
        page.goto(file.as_uri())

    def faults(self, script: str) -> Any:
        return self.page.evaluate(script)


@pytest.fixture(params=["light", "dark"])
def scheme(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(params=WIDTHS)
def opened(request: pytest.FixtureRequest, scheme: str, browser: "Browser", page_file: Path) -> Iterator[Opened]:
    page = browser.new_page(viewport={"width": WIDTHS[request.param], "height": 844}, color_scheme=scheme)  # type: ignore[arg-type]
    yield Opened(page, page_file)
    page.close()


def test_the_page_shows_every_plot_whole_and_nothing_is_cut_or_wider_than_the_screen(
    opened: Opened, sample_plots: list[Plot]
) -> None:
    assert opened.complaints == []
    assert [url for url in opened.requests if not url.startswith("file:")] == []
    assert opened.faults(_SHOWN) == [plot.name for plot in sample_plots if plot.group == "perplexity"] + [
        plot.name for plot in sample_plots if plot.group != "perplexity"
    ]
    assert opened.faults("document.documentElement.scrollWidth <= innerWidth")
    assert opened.faults(_WIDER) == []
    assert opened.faults(_CUT) == []
    assert opened.faults(_OUTSIDE) == []
    assert opened.faults(_OVERLAPPING) == []
    assert opened.faults(_CONTRAST) == []


def test_text_of_plots_is_large_enough_to_read_on_a_phone(browser: "Browser", page_file: Path) -> None:
    page = browser.new_page(viewport={"width": 390, "height": 844})
    opened = Opened(page, page_file)
    smallest = opened.faults(
        """() => Math.min(...[...document.querySelectorAll("figure svg")].flatMap(svg => {
            const scale = svg.getBoundingClientRect().width / svg.viewBox.baseVal.width;
            return [...svg.querySelectorAll("text")].map(text => parseFloat(getComputedStyle(text).fontSize) * scale);
        }))"""
    )
    page.close()
    assert smallest >= 9


def test_dark_and_light_are_different_pages_of_the_same_words(browser: "Browser", page_file: Path) -> None:
    colors = {}
    for scheme in ("light", "dark"):
        page = browser.new_page(color_scheme=scheme)  # type: ignore[arg-type]
        opened = Opened(page, page_file)
        colors[scheme] = opened.faults(
            """() => [getComputedStyle(document.body).backgroundColor,
                getComputedStyle(document.querySelector("svg text")).fill]"""
        )
        page.close()
    assert colors["light"][0] == "rgb(255, 255, 255)"
    assert colors["light"][0] != colors["dark"][0]
    assert colors["light"][1] != colors["dark"][1]


@pytest.mark.parametrize("width", WIDTHS.values(), ids=WIDTHS)
def test_a_small_report_fits_too(width: int, browser: "Browser", small_file: Path) -> None:
    page = browser.new_page(viewport={"width": width, "height": 844})
    opened = Opened(page, small_file)
    assert opened.faults(_SHOWN) == ["perplexity-size", "kl-divergence", "memory"]
    assert opened.faults("document.documentElement.scrollWidth <= innerWidth")
    for script in (_WIDER, _CUT, _OUTSIDE, _OVERLAPPING, _CONTRAST):
        assert opened.faults(script) == []
    page.close()


HOSTILE = '<script>document.title="taken"</script><img src=x onerror="document.title=1">"\'&amp;$x^2$ --><b>#0072b2'


def test_hostile_names_are_words_on_the_page_and_run_nothing(browser: "Browser", tmp_path: Path) -> None:
    report = sample()
    del report["models"][2:]
    for number, model in enumerate(report["models"]):
        for key in ("name", "label", "path", "engine"):
            model[key] = HOSTILE + str(number)
        for row in model["memory"]:
            for device in row["devices"]:
                device["name"] = HOSTILE + device["name"]
        for error in model.get("tensor_errors", []):
            error["kind"], error["type"] = HOSTILE + error["kind"], HOSTILE
        for quality in model["quality"]:
            quality["text"] += HOSTILE
    for text in report["texts"]:
        text["name"] += HOSTILE
    report["flags"] = [HOSTILE]
    report["machine"]["cpu"] = HOSTILE
    file = tmp_path / "report.html"
    file.write_text(html(report, plots(report)), "utf-8")
    page = browser.new_page(viewport={"width": 390, "height": 844})
    opened = Opened(page, file)
    assert opened.complaints == []
    assert opened.requests == [file.as_uri()]
    assert page.title() == f"What quantization cost {HOSTILE}0"
    assert page.locator("script, img, b:not(.flags b)").count() == 0
    assert HOSTILE in page.locator(".flags").inner_text()
    assert opened.faults("document.documentElement.scrollWidth <= innerWidth")
    assert opened.faults(_WIDER) == []
    assert opened.faults(_OUTSIDE) == []
    assert opened.faults(_OVERLAPPING) == []
    page.close()
