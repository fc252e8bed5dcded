"""Text that others wrote as Markdown: names, licenses and templates keep their text and mark nothing up."""

import re
from collections.abc import Sequence
from urllib.parse import quote

# What Markdown, or HTML inside it, reads as markup. An underscore or a dash inside a word is plain text.
_MARKUP = re.compile(r"([\\`*\[\]<>|~$&#!]|(?<![A-Za-z0-9])_|_(?![A-Za-z0-9])|^(?:[-+=]|\d+[.)])(?=\s|[-+=]|$))")
_ADDRESS = re.compile(r"(?i)\b(https?|ftp)(://)|\b(www)(\.)|(?<=\S)(@)(?=\S)")


def one_line(text: str) -> str:
    """The text in one line, without invisible characters: control characters, direction marks, lone surrogates."""
    visible = "".join(char if char.isprintable() else " " if char.isspace() else "\ufffd" for char in text)
    return " ".join(visible.split())


def plain(text: str) -> str:
    """The text, escaped so that Markdown shows it unchanged; addresses in it do not become links."""
    escaped = _MARKUP.sub(lambda match: _escape(match[1]), one_line(text))
    return _ADDRESS.sub(_broken_address, escaped)


def code(text: str) -> str:
    """The text as a code span that nothing in it ends, and that is allowed in a table."""
    line = one_line(text).replace("|", "\u2502")  # no escape of a bar works both in a span and in a table
    fence = "`" * (_longest_run(line) + 1)
    pad = " " if line.startswith("`") or line.endswith("`") or not line else ""
    return f"{fence}{pad}{line}{pad}{fence}"


def block(text: str, language: str = "") -> str:
    """The text as a fenced block that none of its lines ends; line breaks stay, other control characters go."""
    lines = re.split(r"\r\n|\r|\n", text)
    visible = "\n".join("".join(c if c.isprintable() or c == "\t" else "\ufffd" for c in line) for line in lines)
    fence = "`" * max(3, _longest_run(visible) + 1)
    return f"{fence}{language}\n{visible}\n{fence}"


def link(text: str, path: str) -> str:
    """A link to a file of the same repository."""
    return f"[{plain(text)}]({quote(path, errors='replace')})"


def table(headers: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table whose cells are Markdown; the first column holds words, the others figures."""
    lines = [headers, ["---", *["---:"] * (len(headers) - 1)], *rows]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines)


def bullets(items: Sequence[str]) -> str:
    """A Markdown list."""
    return "\n".join(f"- {item}" for item in items)


def _escape(mark: str) -> str:
    return f"{mark[:-1]}\\{mark[-1]}" if mark[:1].isdigit() else f"\\{mark}"


def _broken_address(match: re.Match[str]) -> str:
    # An HTML comment is invisible and separates both halves.
    address = match[0]
    at = address.find(":") if "://" in address else len(address) - 1
    return f"{address[:at]}<!-- -->{address[at:]}"


def _longest_run(text: str) -> int:
    return max((len(run) for run in re.findall("`+", text)), default=0)
