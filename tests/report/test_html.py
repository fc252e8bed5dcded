"""The page as text; how a browser shows it is test_browser's."""

from html.parser import HTMLParser
from typing import Any

from quantkit.report.html import html
from quantkit.report.markdown import markdown
from tests.report.sample import CHINESE, WIKI, sample, spoilt_documents
from tests.report.test_markdown import tables


class Read(HTMLParser):
    """Rows of every table as lists of cells, and the headings."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tables: list[list[list[str]]] = []
        self.headings: list[str] = []
        self.tags: set[str] = set()
        self._into: list[str] | None = None
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        if tag == "table":
            self.tables.append([])
        elif tag == "tr":
            self.tables[-1].append([])
        elif tag in ("td", "th") and dict(attrs).get("class") != "heading":
            self._into = self.tables[-1][-1]
            self._into.append("")
        elif tag == "h2":
            self._into = self.headings
            self._into.append("")

    def handle_endtag(self, tag: str) -> None:
        if tag in ("td", "th", "h2"):
            self._into = None

    def handle_data(self, data: str) -> None:
        if self._into is not None:
            self._into[-1] += data.replace("\u00a0", " ")


def test_the_page_has_every_row_of_the_markdown_and_its_figures() -> None:
    """The Markdown's figures are checked against the document by test_markdown."""
    rows = [row for table in Read(html(sample())).tables for row in table]
    for table in tables(markdown(sample())):
        for row in table:
            assert list(row.values()) in rows


def test_sections_follow_what_was_measured() -> None:
    document = sample()
    assert Read(html(document)).headings == [
        *("Each text in full", "Memory", "Speed", "Machine and settings", "Files"),
    ]
    for model in document["models"]:
        model.pop("memory")
        model.pop("speed")
    del document["machine"], document["settings"], document["seconds"], document["created"], document["quantkit"]
    assert Read(html(document)).headings == ["Each text in full", "Files"]


def test_provenance_is_all_there() -> None:
    page = html(sample())
    for text in sample()["texts"]:
        assert text["sha256"] in page
    for model in sample()["models"]:
        assert model["path"] in page
        assert f"{model['bytes']:,}" in page
    for fact in ("AMD EPYC 9R14", "NVIDIA H200", "2026-11-21T12:30:00Z", "0.1.0", "15 min", WIKI, CHINESE):
        assert fact in page


def test_nothing_on_the_page_comes_from_elsewhere() -> None:
    page = html(sample())
    assert not {"script", "link", "img", "iframe", "object"} & Read(page).tags
    assert "default-src 'none'" in page
    assert "http://" not in page and "https://" not in page and "@import" not in page


def test_names_are_escaped_everywhere() -> None:
    def hostile(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: entry if key in ("role",) else hostile(entry) for key, entry in value.items()}
        if isinstance(value, list):
            return [hostile(entry) for entry in value]
        return f"{value}<i onload='x'>\"</style></td>\u202e\ud800" if isinstance(value, str) else value

    page = html(hostile(sample()))
    assert "<i" not in page.replace("<i onload", "<i onload" if "<i onload" in page else "")
    assert "i" not in Read(page).tags
    assert page.count("</style>") == 1
    assert "\u202e" not in page
    page.encode()


def test_a_document_with_any_part_spoilt_is_still_a_page() -> None:
    for document in spoilt_documents():
        assert "</html>" in html(document)


def test_an_empty_document_is_a_page_without_sections() -> None:
    assert Read(html({})).headings == []
