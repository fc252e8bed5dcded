"""The report.json document, read softly: what is absent or malformed is None or an empty tuple, and never made up.

Sizes are bytes, KL divergences nats, agreements fractions of 1, speeds tokens a second. A number that is not finite
counts as absent.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any, TypeVar

Item = TypeVar("Item")


@dataclass(frozen=True)
class Value:
    """A figure with its standard error, which a document may lack."""

    value: float
    error: float | None


@dataclass(frozen=True)
class Histogram:
    """Counts of tokens between neighbouring `edges`; the first and the last bin also hold what lies beyond."""

    edges: tuple[float, ...]
    counts: tuple[float, ...]


@dataclass(frozen=True)
class Divergence:
    """KL divergence of a candidate from the reference, in nats a token."""

    mean: Value | None
    median: float | None
    p90: float | None
    p99: float | None
    p999: float | None
    max: float | None
    histogram: Histogram | None


@dataclass(frozen=True)
class Quality:
    """A model on one text; all but `perplexity` is for candidates only, paired with the reference token by token."""

    text: str
    perplexity: Value | None
    difference: Value | None
    ratio: Value | None
    kl: Divergence | None
    top1: Value | None
    top5: Value | None
    probability: Value | None
    probability_rms: Value | None


@dataclass(frozen=True)
class DeviceMemory:
    name: str
    parts: Mapping[str, float]
    """Kind (weights, kv, compute, other) -> bytes, only what was measured."""

    @property
    def total(self) -> float:
        return sum(self.parts.values())


@dataclass(frozen=True)
class Memory:
    gpu_layers: str
    n_ctx: int | None
    devices: tuple[DeviceMemory, ...]
    peak_rss: float | None
    peak_pss: float | None
    driver: tuple[tuple[str, float], ...]


@dataclass(frozen=True)
class Speed:
    gpu_layers: str | None
    threads: int | None
    repetitions: int | None
    prompt_tokens: int | None
    prompt: Value | None
    generated_tokens: int | None
    generation: Value | None


@dataclass(frozen=True)
class TensorError:
    """Relative Frobenius error of a weight; `layer` is None outside the layers."""

    layer: int | None
    kind: str
    type: str
    error: float


@dataclass(frozen=True)
class Model:
    name: str
    label: str
    """Short, and no two models of a report have the same."""
    is_reference: bool
    kind: str
    path: str
    engine: str
    bytes: float | None
    parameters: int | None
    bits_per_weight: float | None
    quality: tuple[Quality, ...]
    memory: tuple[Memory, ...]
    speed: tuple[Speed, ...]
    tensor_errors: tuple[TensorError, ...]

    def on(self, text: str) -> Quality | None:
        return next((quality for quality in self.quality if quality.text == text), None)


@dataclass(frozen=True)
class Text:
    name: str
    sha256: str
    tokens: int | None
    chunks: int | None
    scored_tokens: int | None


@dataclass(frozen=True)
class Report:
    version: str
    created: str
    cpu: str
    cores: int | None
    memory_bytes: float | None
    gpus: tuple[tuple[str, float | None], ...]
    ctx: int | None
    chunks: int | None
    threads: int | None
    texts: tuple[Text, ...]
    models: tuple[Model, ...]
    flags: tuple[str, ...]
    seconds: float | None

    @property
    def reference(self) -> Model | None:
        return next((model for model in self.models if model.is_reference), None)

    @property
    def candidates(self) -> tuple[Model, ...]:
        return tuple(model for model in self.models if not model.is_reference)


def read_report(document: Mapping[str, Any]) -> Report:
    """The document as typed values; never raises for what is missing or of a wrong type."""
    machine, settings = _mapping(document.get("machine")), _mapping(document.get("settings"))
    models = _each(document.get("models"), _model)
    texts = _each(document.get("texts"), _text)
    known = {text.name for text in texts}
    unlisted = dict.fromkeys(quality.text for model in models for quality in model.quality if quality.text not in known)
    return Report(
        version=_string(document.get("quantkit")),
        created=_string(document.get("created")),
        cpu=_string(machine.get("cpu")),
        cores=_integer(machine.get("cores")),
        memory_bytes=_number(machine.get("memory_bytes")),
        gpus=_each(machine.get("gpus"), lambda gpu: (_string(gpu.get("name")), _number(gpu.get("memory_bytes")))),
        ctx=_integer(settings.get("ctx")),
        chunks=_integer(settings.get("chunks")),
        threads=_integer(settings.get("threads")),
        texts=(*texts, *(Text(name, "", None, None, None) for name in unlisted)),
        models=_with_own_labels(models),
        flags=tuple(flag for flag in map(_string, _sequence(document.get("flags"))) if flag),
        seconds=_number(document.get("seconds")),
    )


def _model(found: Mapping[str, Any]) -> Model:
    name = _string(found.get("name")) or _string(found.get("label")) or "unnamed"
    return Model(
        name=name,
        label=_string(found.get("label")) or name,
        is_reference=found.get("role") == "reference",
        kind=_string(found.get("kind")),
        path=_string(found.get("path")),
        engine=_string(found.get("engine")),
        bytes=_number(found.get("bytes")),
        parameters=_integer(found.get("parameters")),
        bits_per_weight=_number(found.get("bits_per_weight")),
        quality=_each(found.get("quality"), _quality),
        memory=_each(found.get("memory"), _memory),
        speed=_each(found.get("speed"), _speed),
        tensor_errors=tuple(error for error in _each(found.get("tensor_errors"), _tensor_error) if error is not None),
    )


def _with_own_labels(models: Sequence[Model]) -> tuple[Model, ...]:
    """Two candidates may have one label (two folders of AWQ): these go by their names, or by a number at the end."""
    labels = [model.label for model in models]
    found: list[Model] = []
    for model in models:
        label = model.label if labels.count(model.label) == 1 else model.name
        taken = {other.label for other in found}
        number, own = 1, label
        while own in taken:
            number += 1
            own = f"{label} ({number})"
        found.append(replace(model, label=own))
    return tuple(found)


def _quality(found: Mapping[str, Any]) -> Quality:
    kl = _mapping(found.get("kl"))
    change = _mapping(found.get("probability_change"))
    return Quality(
        text=_string(found.get("text")),
        perplexity=_value(found.get("perplexity")),
        difference=_value(found.get("perplexity_difference")),
        ratio=_value(found.get("perplexity_ratio")),
        kl=_divergence(kl) if kl else None,
        top1=_value(found.get("top1")),
        top5=_value(found.get("top5")),
        probability=_value(change, "mean"),
        probability_rms=_value(change, "rms", "rms_error"),
    )


def _divergence(found: Mapping[str, Any]) -> Divergence:
    return Divergence(
        mean=_value(found, "mean"),
        median=_number(found.get("median")),
        p90=_number(found.get("p90")),
        p99=_number(found.get("p99")),
        p999=_number(found.get("p999")),
        max=_number(found.get("max")),
        histogram=_histogram(_mapping(found.get("histogram"))),
    )


def _histogram(found: Mapping[str, Any]) -> Histogram | None:
    edges = [_number(edge) for edge in _sequence(found.get("edges"))]
    counts = [_number(count) for count in _sequence(found.get("counts"))]
    real = [edge for edge in edges if edge is not None and edge > 0]
    whole = [count for count in counts if count is not None and count >= 0]
    rises = all(low < high for low, high in pairwise(real))
    if len(real) != len(edges) or len(whole) != len(counts) or len(edges) != len(counts) + 1 or not rises:
        return None
    return Histogram(tuple(real), tuple(whole)) if sum(whole) > 0 else None


def _memory(found: Mapping[str, Any]) -> Memory:
    return Memory(
        gpu_layers=_layers(found.get("gpu_layers"), _integer(found.get("of_layers"))) or "?",
        n_ctx=_integer(found.get("n_ctx")),
        devices=_each(found.get("devices"), _device),
        peak_rss=_number(found.get("peak_rss")),
        peak_pss=_number(found.get("peak_pss")),
        driver=tuple(
            (name, size)
            for name, size in _each(
                found.get("driver"), lambda gpu: (_string(gpu.get("name")), _number(gpu.get("bytes")))
            )
            if size is not None
        ),
    )


def _device(found: Mapping[str, Any]) -> DeviceMemory:
    parts = {kind: _number(found.get(kind)) for kind in ("weights", "kv", "compute", "other")}
    return DeviceMemory(
        _string(found.get("name")), {kind: size for kind, size in parts.items() if size is not None and size >= 0}
    )


def _speed(found: Mapping[str, Any]) -> Speed:
    return Speed(
        gpu_layers=_layers(found.get("gpu_layers")),
        threads=_integer(found.get("threads")),
        repetitions=_integer(found.get("repetitions")),
        prompt_tokens=_integer(found.get("prompt_tokens")),
        prompt=_value(found.get("prompt")),
        generated_tokens=_integer(found.get("generated_tokens")),
        generation=_value(found.get("generation")),
    )


def _tensor_error(found: Mapping[str, Any]) -> TensorError | None:
    error, kind = _number(found.get("error")), _string(found.get("kind"))
    if error is None or error < 0 or not kind:
        return None
    return TensorError(_integer(found.get("layer")), kind, _string(found.get("type")), error)


def _text(found: Mapping[str, Any]) -> Text:
    return Text(
        name=_string(found.get("name")),
        sha256=_string(found.get("sha256")),
        tokens=_integer(found.get("tokens")),
        chunks=_integer(found.get("chunks")),
        scored_tokens=_integer(found.get("scored_tokens")),
    )


def _each(found: object, read: Callable[[Mapping[str, Any]], Item]) -> tuple[Item, ...]:
    return tuple(read(item) for item in _sequence(found) if isinstance(item, Mapping))


def _mapping(found: object) -> Mapping[str, Any]:
    return found if isinstance(found, Mapping) else {}


def _sequence(found: object) -> Sequence[Any]:
    return found if isinstance(found, Sequence) and not isinstance(found, str | bytes) else ()


def _string(found: object) -> str:
    """Names come from files: what is not printable (line breaks, bidi marks, lone surrogates) must not reach a page."""
    if not isinstance(found, str):
        return ""
    return "".join(each if each.isprintable() else " " if each.isspace() else "\ufffd" for each in found)


def _number(found: object) -> float | None:
    if isinstance(found, bool) or not isinstance(found, int | float) or not math.isfinite(found):
        return None
    return found


def _integer(found: object) -> int | None:
    number = _number(found)
    return None if number is None else int(number)


def _layers(found: object, of: int | None = None) -> str | None:
    """How many layers (of all, where known) are on the GPU: a count, or a word."""
    number = _integer(found)
    if number is not None and of is not None and 0 < of <= number:
        return f"{of} (all)"
    return str(number) if number is not None else _string(found) or None


def _value(found: object, value: str = "value", error: str = "error") -> Value | None:
    mapping = _mapping(found)
    number = _number(mapping.get(value))
    return None if number is None else Value(number, _number(mapping.get(error)))
