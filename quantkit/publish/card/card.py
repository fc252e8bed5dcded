"""The model card of an output folder: README.md with the hub's metadata, measured figures and run commands."""

import hashlib
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from quantkit.errors import OutputError, UsageError
from quantkit.files import cannot_write, write_atomically
from quantkit.packed.registry import read_type
from quantkit.publish.card.escaping import link, plain
from quantkit.publish.card.facts import KINDS, CardFacts, CardModel, card_facts
from quantkit.publish.card.metadata import Metadata, front_matter
from quantkit.publish.card.provenance import made
from quantkit.publish.card.sections import choice, conversation, files, measured, opening, shown
from quantkit.publish.card.usage import running

__all__ = ["CardModel", "card_text", "kind_of_folder", "write_card"]

FILE_NAME, PLOTS = "README.md", "plots"
_MARK = re.compile(r"<!-- quantkit card ([0-9a-f]{64}) -->\n\Z")
_PICTURES = {
    "perplexity-size": "Perplexity against size",
    "kl-divergence": "KL divergence from the reference",
    "memory": "Memory",
    "tensor-errors": "Error of the weights by layer",
}


def write_card(
    folder: Path,
    *,
    kind: str,
    model: CardModel,
    report: Mapping[str, Any] | None = None,
    plots: Path | None = None,
    path: Path | None = None,
) -> Path:
    """Write the card of `folder`, and return its path: `path`, or README.md in the folder.

    `kind`: "gguf", or a format of folders such as "awq". `report`: a report.json document; models that are not files of
    this folder are ignored.
    `plots`: the report's folder, or its folder of PNGs. They are copied to plots/ beside the card if the report
    measured this folder. A card that was edited since quantkit wrote it is kept as README.md.bak.

    Raises:
        UsageError: the folder has another kind, or a language is not an ISO 639 code.
        PublishError: the report measured other files than the folder has now.
        CheckpointError: the folder has no readable model.
        OutputError: the card cannot be written.
    """
    facts = card_facts(folder, kind, model, report)
    path = path or folder / FILE_NAME
    if path.is_dir():
        raise OutputError(f"{path} is a folder; choose another file for the card")
    # plots of a report without this folder are those of another model
    is_measured = report is None or facts.report is not None
    pictures = _pictures(plots) if plots is not None and is_measured else {}
    text = card_text(facts, pictures)
    try:
        for name, picture in pictures.items():
            (path.parent / PLOTS).mkdir(exist_ok=True)
            write_atomically(path.parent / PLOTS / name, picture.read_bytes())
        if path.exists() and not _is_ours(path):
            path.rename(_free_name(path))
        path.parent.mkdir(exist_ok=True)
        write_atomically(path, text)
    except OSError as error:
        raise cannot_write(error.filename or path, error) from error
    return path


def kind_of_folder(folder: Path) -> str:
    """The kind of an output folder: "gguf", or a format of folders such as "awq".

    Raises:
        UsageError: the folder is of another kind.
    """
    if any(folder.glob("*.gguf")):
        return "gguf"
    kind = read_type(folder)
    if kind is None:
        raise UsageError(
            f"{folder} is not a folder of GGUF files or of quantized weights; convert a model into it first"
        )
    return kind


def card_text(facts: CardFacts, pictures: Mapping[str, Path] | None = None) -> str:
    """The text of the card; its last line is a checksum that shows later edits."""
    model, description = facts.model, facts.description
    metadata = Metadata(
        kind=facts.kind,
        base_model=facts.base_model,
        license=facts.license,
        languages=model.languages,
        hub_repo=model.hub_repo,
        conversational=description.template is not None,
        imatrix=any((entry.get("options") or {}).get("imatrix") for entry in facts.entries),
        bits=description.quantization.bits if description.quantization is not None else None,
        sees=facts.projector is not None,
    )
    title = plain(f"{model.name} {KINDS[facts.kind]}")
    sections = shown(
        [
            ("Files", files(facts)),
            ("Which file to choose" if facts.kind == "gguf" else "Memory needed", choice(facts)),
            ("Running it", running(facts)),
            ("Chat template", conversation(facts)),
            ("Memory and speed", measured(facts)),
            ("Plots", "\n\n".join(f"!{link(_caption(name), f'{PLOTS}/{name}')}" for name in pictures or ())),
            ("How it was made", made(facts)),
        ]
    )
    text = f"{front_matter(metadata.fields())}\n# {title}\n\n{opening(facts)}\n\n{sections}\n"
    return f"{text}\n<!-- quantkit card {_digest(text)} -->\n"


def _pictures(folder: Path) -> dict[str, Path]:
    where = folder / PLOTS if (folder / PLOTS).is_dir() else folder
    return {path.name: path for path in sorted(where.glob("*.png"), key=_place)}


def _place(path: Path) -> tuple[int, int, str]:
    """The order of the report's page: by subject, then by number."""
    order = [number for number, start in enumerate(_PICTURES) if path.stem.startswith(start)]
    number = re.search(r"-(\d+)$", path.stem)
    return order[0] if order else len(_PICTURES), int(number[1]) if number else 1, path.name


def _caption(name: str) -> str:
    stem = name.removesuffix(".png")
    caption = next((words for start, words in _PICTURES.items() if stem.startswith(start)), stem)
    number = re.search(r"-(\d+)$", stem)
    return f"{caption} ({number[1]})" if number and caption != stem else caption


def _is_ours(path: Path) -> bool:
    try:
        text = path.read_text("utf-8")
    except (OSError, ValueError):
        return False
    mark = _MARK.search(text)
    return mark is not None and mark[1] == _digest(text[: mark.start() - 1])


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8")).hexdigest()


def _free_name(path: Path) -> Path:
    number, name = 1, path.with_name(f"{path.name}.bak")
    while name.exists():
        number += 1
        name = path.with_name(f"{path.name}.bak{number}")
    return name
