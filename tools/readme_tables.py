"""The README's tables that are made from data: `make readme` writes them, tests/docs/test_readme.py keeps them so."""

import re
from pathlib import Path

from quantkit.families import all_families

README = Path(__file__).resolve().parents[1] / "README.md"


def family_table() -> str:
    """A row per family: its models, its architectures in config.json, its architecture in GGUF."""
    rows = ["| family | models | `architectures` of config.json | GGUF |", "|---|---|---|---|"]
    for family in sorted(all_families(), key=lambda family: family.name.lower()):
        names = ", ".join(f"`{name}`" for name in family.architectures)
        rows.append(f"| {family.name} | {family.models} | {names} | {family.gguf_arch} |")
    return "\n".join(rows)


def with_tables(text: str) -> str:
    """`text` with what stands between the markers made anew."""
    marked = re.compile(r"(<!-- families: made from quantkit/families by `make readme` -->\n).*?(<!-- end -->)", re.S)
    assert marked.search(text), "the README has lost its markers"
    return marked.sub(lambda found: f"{found[1]}{family_table()}\n{found[2]}", text)


if __name__ == "__main__":
    README.write_text(with_tables(README.read_text("utf-8")), "utf-8")
