"""The facts of a folder of outputs that its card states: weight files, quantkit.json, chat template, figures."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from quantkit.errors import PublishError, UsageError
from quantkit.gguf.projector_file import named_projectors, only_hears
from quantkit.gguf.reader import read_header
from quantkit.inspection import Description, inspect_source
from quantkit.inspection.record import changed_since, entry_of, read_record
from quantkit.measurement.document import Model, Report
from quantkit.measurement.reading import read_report
from quantkit.packed.registry import FORMATS, read_type
from quantkit.publish.card.metadata import page_of
from quantkit.publish.ollama.facts import facts_of_gguf

KINDS = {"gguf": "GGUF", **{name: kind.label for name, kind in FORMATS.items()}}


@dataclass(frozen=True)
class CardModel:
    """The publisher's statements about the model; only the name is required.

    `base_model`: a hub id, or modelscope:ORG/NAME. `license`: the hub's identifier, or the licence's name.
    `languages`: ISO 639 codes.
    `ollama_name`: NAMESPACE/MODEL on Ollama. `hub_repo`: the hub repository of the card.
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
    """One download: a GGUF, all its shards, or the quantized checkpoint of the folder.

    `type`: q4_0, awq. `entry`: its entry in quantkit.json. `measured`: its figures in the report, or None.
    """

    name: str
    type: str
    files: tuple[tuple[str, int], ...]
    bits_per_weight: float | None
    entry: Mapping[str, Any] | None
    measured: Model | None = None

    @property
    def bytes(self) -> int:
        """Bytes of all files."""
        return sum(size for _, size in self.files)

    @property
    def path(self) -> str:
        """The file that a command names."""
        return self.files[0][0]


@dataclass(frozen=True)
class CardFacts:
    """All facts of a card. `report` has only the models of this folder and the reference.

    `projector`: the file in the folder with which its models see images, or None.
    """

    kind: str
    model: CardModel
    description: Description
    weights: tuple[Weights, ...]
    report: Report | None
    base_model: str | None
    revision: str | None
    license: str | None
    projector: str | None = None

    @property
    def context_length(self) -> int | None:
        """Context in tokens; None if unknown."""
        return self.model.context_length or self.description.shape.context

    @property
    def entries(self) -> tuple[Mapping[str, Any], ...]:
        """The entries of quantkit.json, without duplicates."""
        return tuple(weights.entry for weights in self.weights if weights.entry is not None)


def card_facts(folder: Path, kind: str, model: CardModel, report: Mapping[str, Any] | None) -> CardFacts:
    """The facts of `folder`, an output folder of `kind` ("gguf", or a format of folders such as "awq").

    `report`: a report.json document; its models that are not files of this folder are ignored.

    Raises:
        UsageError: the kind is unknown, or the folder has another kind.
        PublishError: the report measured other files than the folder has now.
        CheckpointError: the folder has no readable model.
    """
    if kind not in KINDS:
        raise UsageError(f"a card is for {', '.join(KINDS)}, not {kind!r}")
    description = inspect_source(str(folder.resolve()))
    weights = _gguf_weights(folder, description) if kind == "gguf" else _folder_weights(folder, kind, description)
    for output in weights:
        if output.entry is not None and (changed := changed_since(output.entry, folder)):
            raise PublishError(f"{changed[0]}; convert it again, or remove its entry from quantkit.json")
    own_report = None
    if report is not None:
        whole = read_report(report)
        weights = tuple(replace(output, measured=_measured(output, whole, kind)) for output in weights)
        measured_ids = {id(output.measured) for output in weights}
        models = tuple(measured for measured in whole.models if measured.is_reference or id(measured) in measured_ids)
        if any(output.measured for output in weights):
            own_report = replace(whole, models=models)
    origins = [origin for output in weights if (origin := _mapping((output.entry or {}).get("origin")))]
    source, revision = (origins[0].get("source"), origins[0].get("revision")) if origins else (None, None)
    source = source.partition("@")[0] if isinstance(source, str) else None
    return CardFacts(
        kind=kind,
        model=model,
        description=description,
        weights=weights,
        report=own_report,
        base_model=model.base_model or (source if source and page_of(source) else None),
        revision=revision if isinstance(revision, str) else None,
        license=model.license or (facts_of_gguf(folder / weights[0].path).license if kind == "gguf" else None),
        projector=_projector(folder / weights[0].path) if kind == "gguf" else None,
    )


def _projector(model: Path) -> str | None:
    return next((path.name for path in named_projectors(model) if not only_hears(read_header(path))), None)


def _gguf_weights(folder: Path, description: Description) -> tuple[Weights, ...]:
    if description.kind != "folder of GGUF files":
        raise UsageError(f"{folder} is a {description.kind}, not a folder of GGUF files; pass another --kind")
    record = read_record(folder)
    described = {file.name for file in description.files}
    for path in sorted(folder.glob("*.gguf")):
        if path.name not in described:
            read_header(path)  # an importance matrix is allowed here; a damaged file raises an error
    outputs = [
        Weights(
            output.name,
            output.type,
            tuple((file.name, file.bytes) for file in output.files),
            output.bits_per_weight or None,
            entry_of(record, folder / output.files[0].name),
        )
        for output in description.outputs
    ]
    return tuple(sorted(outputs, key=lambda weights: (weights.bytes, weights.name)))


def _folder_weights(folder: Path, kind: str, description: Description) -> tuple[Weights, ...]:
    if read_type(folder) != kind:
        actual = " ".join(filter(None, (description.type, description.kind)))
        raise UsageError(f"{folder} is a {actual}, not a folder of {KINDS[kind]}; pass another --kind")
    files = tuple((file.name, file.bytes) for file in description.files)
    entry = entry_of(read_record(folder), folder / files[0][0]) if files else None
    bits = description.weights.bits_per_weight if description.weights else None
    return (Weights(folder.resolve().name, kind, files, bits, entry),)


def _measured(weights: Weights, report: Report, kind: str) -> Model | None:
    """The figures of these files: the report's model with their path, else its only model whose label is their type."""
    names = {weights.name, *(name for name, _ in weights.files)} if kind == "gguf" else {weights.name}
    same_kind = [model for model in report.models if model.kind == kind]
    candidates = [model for model in same_kind if model.path in names]
    if not candidates:
        candidates = [model for model in same_kind if not model.path and _label(model, weights)]
    if len(candidates) != 1:
        return None
    model = candidates[0]
    if model.bytes is not None and int(model.bytes) != weights.bytes:
        raise PublishError(
            f"the report measured {model.path or model.label} with {model.bytes:.0f} bytes, but the file now has"
            f" {weights.bytes} bytes; measure it again with quantkit measure, or write the card without the report"
        )
    return model


def _label(model: Model, weights: Weights) -> bool:
    return model.label.lower() == weights.type.lower()


def _mapping(value: object) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}
