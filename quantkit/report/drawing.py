"""The style of every plot, and a figure as SVG and PNG: the same report gives the same bytes.

matplotlib (extra `report`) is imported on first use only. Figures are drawn in the light colours; the SVG for a page
has CSS variables in their places, so that it follows the page's light or dark.
"""

import importlib.util
import io
import re
import unicodedata
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from xml.etree import ElementTree

from quantkit.errors import MissingExtraError

if TYPE_CHECKING:
    from matplotlib.figure import Figure

WIDTH = 380
"""Of every figure, in SVG units: a phone shows them at about their size, so that their text stays readable."""
DPI = 216
"""Of the PNGs: 1140 pixels across."""

# Roles of the page (page.css has their dark values). Colours of data are Okabe and Ito's: colour-blind readers can
# distinguish them.
INK, SOFT, GRID, PAGE = "#1c2127", "#5c6672", "#dde2e8", "#fefefe"
SERIES = ("#0072b2", "#d55e00", "#009e73", "#b5589b", "#2f9fd8", "#c98500")
SERIES_TEXT = ("#00558a", "#b04d00", "#00795a", "#9d4585", "#1a7aad", "#8a5b00")
"""The colours of SERIES for text, with a contrast of at least 4.5 to the page."""
KINDS = {"weights": "#0072b3", "kv": "#e08a00", "compute": "#009e74", "other": "#8d97a3"}
ROLES = {
    INK: "--ink",
    SOFT: "--soft",
    GRID: "--grid",
    PAGE: "--page",
    **{color: f"--series-{number}" for number, color in enumerate(SERIES, 1)},
    **{color: f"--series-text-{number}" for number, color in enumerate(SERIES_TEXT, 1)},
    **{color: f"--{kind}" for kind, color in KINDS.items()},
}
_CHINESE = ("Noto Sans CJK SC", "Noto Sans SC", "Source Han Sans SC", "WenQuanYi Micro Hei", "WenQuanYi Zen Hei")
_FONTS = "system-ui, -apple-system, 'Segoe UI', Roboto, 'Noto Sans', Helvetica, Arial, sans-serif"
_SVG = "{http://www.w3.org/2000/svg}"
_LINK = "{http://www.w3.org/1999/xlink}href"


@dataclass(frozen=True)
class Heading:
    """The words of a picture. `name` is its file's; `group` the section of the page it belongs to."""

    name: str
    group: str
    title: str
    caption: str
    """How to read it; plots of one group that are read alike have the same."""
    note: str = ""
    """A note on this plot alone, or an empty string."""


@dataclass(frozen=True)
class Plot(Heading):
    """One picture with its words."""

    svg: str = ""
    """A separate file, in light colours."""
    inline: str = ""
    """An <svg> element for the page, in the page's colours and font."""
    png: bytes = b""


def check_extra() -> None:
    """Raises:
    MissingExtraError: matplotlib is not installed, which every plot needs.
    """
    if importlib.util.find_spec("matplotlib") is None:
        raise MissingExtraError("plots need matplotlib, which is not installed; pip install 'quantkit[report]'")


def draw(heading: Heading, height: float, fill: Callable[["Figure"], None]) -> Plot:
    """A figure of WIDTH x `height` units, filled by `fill`."""
    name, title = heading.name, heading.title
    with _style(name):
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure

        figure = Figure(figsize=(WIDTH / 72, height / 72), dpi=DPI, layout="constrained")
        FigureCanvasAgg(figure)
        fill(figure)
        # with a layout of its own, a figure is placed and drawn twice in each savefig
        layout = figure.get_layout_engine()
        assert layout is not None
        figure.set_layout_engine(None)
        layout.execute(figure)
        inline = _tree(_drawn(figure), name, title)
        # The page has its own heading; a picture on its own carries its title with it.
        figure.set_size_inches(WIDTH / 72, (height + 24) / 72)
        figure.suptitle(short(title, 50), x=0.015, ha="left", fontsize=11, fontweight="bold")
        layout.execute(figure)
        standalone = _tree(_drawn(figure), name, title)
        pixels = io.BytesIO()
        figure.savefig(pixels, format="png", dpi=DPI, metadata={"Software": None})
    _follow_page(inline)
    return Plot(**vars(heading), svg=_text(standalone), inline=_text(inline), png=pixels.getvalue())


def _drawn(figure: "Figure") -> bytes:
    vector = io.BytesIO()
    figure.savefig(vector, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    return vector.getvalue()


def short(text: str, most: int) -> str:
    """At most `most` characters; a longer text loses its middle, because both ends of a model's name matter."""
    if len(text) <= most:
        return text
    head = (most - 1) // 2
    return f"{text[:head]}…{text[len(text) - (most - 1 - head) :]}"


def distinct(texts: Sequence[str], most: int) -> list[str]:
    """`short` of each text; different texts that would look alike keep the part in which they differ."""
    labels = [short(text, most) for text in texts]
    for label in dict.fromkeys(labels):
        alike = sorted({text for text, other in zip(texts, labels, strict=True) if other == label})
        if len(alike) > 1:
            names = _differing(alike, most)
            labels = [names.get(text, other) for text, other in zip(texts, labels, strict=True)]
    return labels


def _differing(texts: Sequence[str], most: int) -> dict[str, str]:
    """Text -> its label of at most `most` characters, without the characters that all texts begin and end with."""
    start = _n_alike(texts)
    end = _n_alike([text[start:][::-1] for text in texts])
    names = {}
    for text in texts:
        part = short(text[start : len(text) - end], most - 2)
        room = most - 2 - len(part)
        before = text[max(0, start - room // 2) : start]
        after = text[len(text) - end :][: room - len(before)]
        names[text] = f"…{before}{part}{after}…"
    if len(set(names.values())) == len(texts):
        return names
    room = most - 1 - len(str(len(texts)))
    return {text: f"{short(text, room)} {number}" for number, text in enumerate(texts, 1)}


def _n_alike(texts: Sequence[str]) -> int:
    """The number of characters that all texts begin with."""
    columns = enumerate(zip(*texts, strict=False))
    return next((number for number, column in columns if len(set(column)) > 1), min(map(len, texts)))


def em_width(text: str) -> float:
    """An upper bound of the width in em; the font of the reader is not known."""
    return sum(1.0 if unicodedata.east_asian_width(character) in "WF" else 0.62 for character in text)


@contextmanager
def _style(name: str) -> Iterator[None]:
    check_extra()
    import matplotlib
    from matplotlib import font_manager

    present = {font.name for font in font_manager.fontManager.ttflist}
    settings: Any = {
        "svg.hashsalt": name,
        "svg.fonttype": "none",
        "font.family": ["DejaVu Sans", *(font for font in _CHINESE if font in present)],
        "font.size": 11,
        "axes.labelsize": 11,
        "axes.titlesize": 11,
        "xtick.labelsize": 10.5,
        "ytick.labelsize": 10.5,
        "legend.fontsize": 10.5,
        # a name may contain dollar signs, which do not mark a formula
        "text.parse_math": False,
        "text.color": INK,
        "axes.labelcolor": SOFT,
        "axes.edgecolor": GRID,
        "axes.linewidth": 1,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.axisbelow": True,
        "grid.color": GRID,
        "grid.linewidth": 0.8,
        "xtick.color": GRID,
        "ytick.color": GRID,
        "xtick.labelcolor": SOFT,
        "ytick.labelcolor": SOFT,
        "figure.facecolor": PAGE,
        "axes.facecolor": "none",
        "savefig.facecolor": PAGE,
        "legend.frameon": False,
        "figure.constrained_layout.w_pad": 0.06,
        "figure.constrained_layout.h_pad": 0.06,
    }
    with matplotlib.rc_context(settings), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing")
        yield


def _tree(drawn: bytes, name: str, title: str) -> ElementTree.Element:
    """matplotlib's SVG with a title, a font that every system has, and ids that are unique in a page."""
    root = ElementTree.fromstring(drawn)
    for metadata in root.findall(f"{_SVG}metadata"):
        root.remove(metadata)
    for element in root.iter():
        element.tag = element.tag.removeprefix(_SVG)
        link = element.attrib.pop(_LINK, None)
        if link is not None:
            element.set("href", f"#{name}-{link[1:]}" if link.startswith("#") else link)
        for key, value in element.attrib.items():
            if key == "id":
                element.set(key, f"{name}-{value}")
            elif key == "style":
                element.set(key, _own_ids(_font(value), name))
            elif key in ("clip-path", "fill"):
                element.set(key, _own_ids(value, name))
    heading = ElementTree.Element("title")
    heading.text = title
    root.insert(0, heading)
    root.attrib.pop("version", None)
    root.set("xmlns", "http://www.w3.org/2000/svg")
    root.set("role", "img")
    return root


def _follow_page(root: ElementTree.Element) -> None:
    """The page's variables for the colours that have a role; the size and the font are the page's affair too."""
    for key in ("width", "height", "xmlns"):
        root.attrib.pop(key, None)
    for element in root.iter():
        style = element.get("style")
        if style is None:
            continue
        style = re.sub(r"#[0-9a-f]{6}\b", lambda color: _variable(color[0]), style)
        element.set("style", style.replace(f"font-family: {_FONTS}", "font-family: inherit"))


def _variable(color: str) -> str:
    return f"var({ROLES[color]})" if color in ROLES else color


def _own_ids(style: str, name: str) -> str:
    return re.sub(r"url\(#([^)]+)\)", rf"url(#{name}-\1)", style)


def _font(style: str) -> str:
    """`font: 11px 'DejaVu Sans', ...` as a size and families of our own."""
    return re.sub(r"font: (?:[a-z0-9]+ )*?([0-9.]+px) [^;]+", rf"font-size: \1; font-family: {_FONTS}", style)


def _text(root: ElementTree.Element) -> str:
    return ElementTree.tostring(root, encoding="unicode")
