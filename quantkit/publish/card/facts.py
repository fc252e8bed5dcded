"""What a folder of outputs says of itself, for its card: weight files, quantkit.json, the chat template, figures."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from quantkit.errors import PublishError, UsageError
from quantkit.gguf.reader import read_header
from quantkit.inspection import Description, inspect_source
from quantkit.inspection.record import changed_since, entry_of, read_record
from quantkit.measurement.document import Model, Report, read_report
from quantkit.publish.card.metadata import is_hub_id
from quantkit.publish.ollama.facts import facts_of_gguf

KINDS = {"gguf": "GGUF", "awq": "AWQ", "gptq": "GPTQ"}


@dataclass(frozen=True)
class CardModel:
    """What the publisher says of the model; all but its name may be left out.

    `base_model`: a hub id. `license`: the hub's identifier, or the licence's name. `languages`: ISO 639 codes.
    `ollama_name`: NAMESPACE/MODEL, where it is published on Ollama. `hub_repo`: the repository the card is for.
    """

    name: str
    base_model: str | None = None
    license: str | None = None
    languages: tuple[str, ...] = ()
    context_length: int | None = None
    ollama_name: str | None = None
    hub_repo: str | None = None


@dataclass(frozen=True)
class Weights:
    """One thing to download: a GGUF, all its shards, or the quantized checkpoint of the folder.

    `type`: q4_0, awq. `entry`: what quantkit.json records of it. `measured`: its figures, where a report has them.
    """

    name: str
    type: str
    files: tuple[tuple[str, int], ...]
    bits_per_weight: float | None
    entry: Mapping[str, Any] | None
    measured: Model | None = None

    @property
    def bytes(self) -> int:
        return sum(size for _, size in self.files)

    @property
    def path(self) -> str:
        """The file to name in a command."""
        return self.files[0][0]


@dataclass(frozen=True)
class CardFacts:
    """Everything a card is written from. `report` has the models of this folder and the reference only."""

    kind: str
    model: CardModel
    description: Description
    weights: tuple[Weights, ...]
    report: Report | None
    base_model: str | None
    revision: str | None
    license: str | None

    @property
    def context_length(self) -> int | None:
        return self.model.context_length or self.description.shape.context

    @property
    def entries(self) -> tuple[Mapping[str, Any], ...]:
        """The entries of quantkit.json, each once."""
        return tuple(each.entry for each in self.weights if each.entry is not None)


def card_facts(folder: Path, kind: str, model: CardModel, report: Mapping[str, Any] | None) -> CardFacts:
    """Read the folder.

    `report`: a report.json document, of which the models that are files of this folder count.

    Raises:
        UsageError: no such kind, or the folder is of another.
        PublishError: the report's figures are those of other files than are there now.
        CheckpointError: the folder holds no sound model.
    """
    if kind not in KINDS:
        raise UsageError(f"a card is for gguf, awq or gptq, not {kind!r}")
    description = inspect_source(str(folder.resolve()))
    weights = _gguf_weights(folder, description) if kind == "gguf" else _folder_weights(folder, kind, description)
    found = read_report(report) if report is not None else None
    for each in weights:
        if each.entry is not None and (changed := changed_since(each.entry, folder)):
            raise PublishError(f"{changed[0]}; convert it again, or take its entry out of quantkit.json")
    if found is not None:
        weights = tuple(replace(each, measured=_measured(each, found, kind)) for each in weights)
        own = {id(each.measured) for each in weights}
        found = replace(found, models=tuple(each for each in found.models if each.is_reference or id(each) in own))
    origins = [origin for each in weights if (origin := _mapping((each.entry or {}).get("origin")))]
    source, revision = (origins[0].get("source"), origins[0].get("revision")) if origins else (None, None)
    source = source.partition("@")[0] if isinstance(source, str) else None
    return CardFacts(
        kind=kind,
        model=model,
        description=description,
        weights=weights,
        report=found if found is not None and any(each.measured for each in weights) else None,
        base_model=model.base_model or (source if source and is_hub_id(source) else None),
        revision=revision if isinstance(revision, str) else None,
        license=model.license or (facts_of_gguf(folder / weights[0].path).license if kind == "gguf" else None),
    )


def _gguf_weights(folder: Path, description: Description) -> tuple[Weights, ...]:
    if description.kind != "folder of GGUF files":
        raise UsageError(f"{folder} is not a folder of GGUF files but a {description.kind}; give --kind awq or gptq")
    record = read_record(folder)
    described = {file.name for file in description.files}
    for path in sorted(folder.glob("*.gguf")):
        if path.name not in described:
            read_header(path)  # an importance matrix may lie here, a damaged file may not
    found = [
        Weights(
            each.name,
            each.type,
            tuple((file.name, file.bytes) for file in each.files),
            each.bits_per_weight or None,
            entry_of(record, folder / each.files[0].name),
        )
        for each in description.outputs
    ]
    return tuple(sorted(found, key=lambda each: (each.bytes, each.name)))


def _folder_weights(folder: Path, kind: str, description: Description) -> tuple[Weights, ...]:
    method = description.quantization.method.lower() if description.quantization else None
    if method != kind:
        raise UsageError(f"{folder} does not hold {KINDS[kind]} but a {description.type or ''} {description.kind}")
    files = tuple((file.name, file.bytes) for file in description.files)
    entry = entry_of(read_record(folder), folder / files[0][0]) if files else None
    bits = description.weights.bits_per_weight if description.weights else None
    return (Weights(folder.resolve().name, kind, files, bits, entry),)


def _measured(weights: Weights, report: Report, kind: str) -> Model | None:
    """The report's model that these files are: by its path, else the only one with its type for a label."""
    names = {weights.name, *(name for name, _ in weights.files)} if kind == "gguf" else {weights.name}
    found = [model for model in report.models if model.kind == kind and model.path in names]
    if not found:
        found = [model for model in report.models if model.kind == kind and not model.path and _label(model, weights)]
    if len(found) != 1:
        return None
    model = found[0]
    if model.bytes is not None and int(model.bytes) != weights.bytes:
        raise PublishError(
            f"the report measured a {model.path or model.label} of {model.bytes:.0f} bytes, but the one there now has"
            f" {weights.bytes}; measure again with `quantkit measure`, or write the card without the report"
        )
    return model


def _label(model: Model, weights: Weights) -> bool:
    return model.label.lower() == weights.type.lower()


def _mapping(found: object) -> Mapping[str, Any]:
    return found if isinstance(found, Mapping) else {}
