"""Read report.json: `load_report` refuses a damaged or newer file, `read_report` returns typed values.

A field that is absent or malformed is None or an empty tuple. A number that is not finite counts as absent.
"""

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any, TypeVar

from quantkit.errors import MeasureError, UsageError
from quantkit.measurement.document import (
    SCHEMA,
    DeviceMemory,
    DeviceSpeed,
    Divergence,
    Embeddings,
    Histogram,
    Memory,
    Model,
    Pictures,
    Quality,
    Report,
    Speed,
    TensorError,
    Text,
    Value,
)

Item = TypeVar("Item")


def load_report(path: Path) -> dict[str, Any]:
    """The document of a report.json.

    Raises:
        UsageError: the file cannot be read.
        MeasureError: the file is not a sound report, or has a newer schema than this version.
    """
    again = "run `quantkit measure` again"
    try:
        document = json.loads(path.read_text("utf-8"))
    except OSError as error:
        raise UsageError(f"cannot read the report {path}: {error.strerror or error}; check the path") from error
    except (ValueError, RecursionError) as error:
        raise MeasureError(f"the report {path} is not valid JSON ({error}); {again}") from error
    if not isinstance(document, dict):
        raise MeasureError(f"the report {path} is not a report of quantkit measure; {again}")
    schema = document.get("schema", 1)
    if not isinstance(schema, int) or schema > SCHEMA:
        raise MeasureError(
            f"the report {path} has schema {schema!r}, newer than {SCHEMA}; upgrade quantkit, or {again}"
        )
    models = document.get("models")
    if not isinstance(models, list) or not all(_is_model(model) for model in models):
        raise MeasureError(f"the report {path} has no sound list of models; {again}")
    return document


def _is_model(model: object) -> bool:
    return isinstance(model, dict) and isinstance(model.get("quality", []), list)


def read_report(document: Mapping[str, Any]) -> Report:
    """The document as typed values; a missing field or one of a wrong type raises no error."""
    machine, settings = _mapping(document.get("machine")), _mapping(document.get("settings"))
    models = _items(document.get("models"), _model)
    texts = _items(document.get("texts"), _text)
    known = {text.name for text in texts}
    unlisted = dict.fromkeys(quality.text for model in models for quality in model.quality if quality.text not in known)
    return Report(
        version=_string(document.get("quantkit")),
        created=_string(document.get("created")),
        cpu=_string(machine.get("cpu")),
        cores=_integer(machine.get("cores")),
        memory_bytes=_number(machine.get("memory_bytes")),
        gpus=_items(machine.get("gpus"), lambda gpu: (_string(gpu.get("name")), _number(gpu.get("memory_bytes")))),
        ctx=_integer(settings.get("ctx")),
        chunks=_integer(settings.get("chunks")),
        threads=_integer(settings.get("threads")),
        texts=(*texts, *(Text(name, "", None, None, None) for name in unlisted)),
        models=_with_own_labels(models),
        flags=tuple(flag for flag in map(_string, _sequence(document.get("flags"))) if flag),
        seconds=_number(document.get("seconds")),
    )


def _model(entry: Mapping[str, Any]) -> Model:
    name = _string(entry.get("name")) or _string(entry.get("label")) or "unnamed"
    return Model(
        name=name,
        label=_string(entry.get("label")) or name,
        is_reference=entry.get("role") == "reference",
        kind=_string(entry.get("kind")),
        path=_string(entry.get("path")),
        engine=_string(entry.get("engine")),
        bytes=_number(entry.get("bytes")),
        parameters=_integer(entry.get("parameters")),
        bits_per_weight=_number(entry.get("bits_per_weight")),
        vocabulary=_integer(entry.get("vocabulary")),
        quality=_items(entry.get("quality"), _quality),
        memory=_items(entry.get("memory"), _memory),
        speed=_items(entry.get("speed"), _speed),
        tensor_errors=tuple(error for error in _items(entry.get("tensor_errors"), _tensor_error) if error is not None),
        embeddings=_embeddings(entry.get("embeddings")),
        pictures=_pictures(entry.get("pictures")),
        device_speed=_items(entry.get("device_speed"), _device_speed),
    )


def _embeddings(entry: Any) -> Embeddings | None:
    if not isinstance(entry, Mapping):
        return None
    names = ("recall", "cosine_mean", "cosine_worst", "rank_correlation", "top10_overlap", "score_correlation")
    return Embeddings(
        set=str(entry.get("set", "")),
        texts=_integer(entry.get("texts")),
        width=_integer(entry.get("width")),
        **{name: _number(entry.get(name)) for name in names},
    )


def _pictures(entry: Any) -> Pictures | None:
    if not isinstance(entry, Mapping):
        return None
    return Pictures(
        set=_string(entry.get("set")),
        pictures=_integer(entry.get("pictures")),
        tokens=_integer(entry.get("tokens")),
        projector=_string(entry.get("projector")),
        projector_bytes=_number(entry.get("projector_bytes")),
        same_answers=_integer(entry.get("same_answers")),
        top1=_number(entry.get("top1")),
        kl=_number(entry.get("kl")),
    )


def _with_own_labels(models: Sequence[Model]) -> tuple[Model, ...]:
    """Two candidates may have one label (two folders of AWQ): these go by their names, or by a number at the end."""
    labels = [model.label for model in models]
    unique: list[Model] = []
    for model in models:
        label = model.label if labels.count(model.label) == 1 else model.name
        used = {other.label for other in unique}
        number, unique_label = 1, label
        while unique_label in used:
            number += 1
            unique_label = f"{label} ({number})"
        unique.append(replace(model, label=unique_label))
    return tuple(unique)


def _quality(entry: Mapping[str, Any]) -> Quality:
    kl = _mapping(entry.get("kl"))
    change = _mapping(entry.get("probability_change"))
    return Quality(
        text=_string(entry.get("text")),
        perplexity=_value(entry.get("perplexity")),
        difference=_value(entry.get("perplexity_difference")),
        ratio=_value(entry.get("perplexity_ratio")),
        kl=_divergence(kl) if kl else None,
        top1=_value(entry.get("top1")),
        top5=_value(entry.get("top5")),
        probability=_value(change, "mean"),
        probability_rms=_value(change, "rms", "rms_error"),
    )


def _divergence(entry: Mapping[str, Any]) -> Divergence:
    return Divergence(
        mean=_value(entry, "mean"),
        median=_number(entry.get("median")),
        p90=_number(entry.get("p90")),
        p99=_number(entry.get("p99")),
        p999=_number(entry.get("p999")),
        max=_number(entry.get("max")),
        histogram=_histogram(_mapping(entry.get("histogram"))),
    )


def _histogram(entry: Mapping[str, Any]) -> Histogram | None:
    edges = [_number(edge) for edge in _sequence(entry.get("edges"))]
    counts = [_number(count) for count in _sequence(entry.get("counts"))]
    real = [edge for edge in edges if edge is not None and edge > 0]
    whole = [count for count in counts if count is not None and count >= 0]
    rises = all(low < high for low, high in pairwise(real))
    if len(real) != len(edges) or len(whole) != len(counts) or len(edges) != len(counts) + 1 or not rises:
        return None
    return Histogram(tuple(real), tuple(whole)) if sum(whole) > 0 else None


def _memory(entry: Mapping[str, Any]) -> Memory:
    return Memory(
        gpu_layers=_layers(entry.get("gpu_layers"), _integer(entry.get("of_layers"))) or "?",
        n_ctx=_integer(entry.get("n_ctx")),
        devices=_items(entry.get("devices"), _device),
        peak_rss=_number(entry.get("peak_rss")),
        peak_pss=_number(entry.get("peak_pss")),
        driver=tuple(
            (name, size)
            for name, size in _items(
                entry.get("driver"), lambda gpu: (_string(gpu.get("name")), _number(gpu.get("bytes")))
            )
            if size is not None
        ),
    )


def _device(entry: Mapping[str, Any]) -> DeviceMemory:
    parts = {kind: _number(entry.get(kind)) for kind in ("weights", "kv", "compute", "other")}
    return DeviceMemory(
        _string(entry.get("name")), {kind: size for kind, size in parts.items() if size is not None and size >= 0}
    )


def _speed(entry: Mapping[str, Any]) -> Speed:
    return Speed(
        gpu_layers=_layers(entry.get("gpu_layers")),
        threads=_integer(entry.get("threads")),
        repetitions=_integer(entry.get("repetitions")),
        prompt_tokens=_integer(entry.get("prompt_tokens")),
        prompt=_value(entry.get("prompt")),
        generated_tokens=_integer(entry.get("generated_tokens")),
        generation=_value(entry.get("generation")),
        estimate=_number(entry.get("estimate")),
        cpu_moe=_integer(entry.get("cpu_moe")),
    )


def _device_speed(entry: Mapping[str, Any]) -> DeviceSpeed:
    rates = _items(entry.get("by_type"), lambda rate: (_string(rate.get("type")), _number(rate.get("bandwidth"))))
    return DeviceSpeed(
        _string(entry.get("name")),
        _number(entry.get("bandwidth")),
        tuple((kind, rate) for kind, rate in rates if rate is not None),
    )


def _tensor_error(entry: Mapping[str, Any]) -> TensorError | None:
    error, kind = _number(entry.get("error")), _string(entry.get("kind"))
    if error is None or error < 0 or not kind:
        return None
    return TensorError(_integer(entry.get("layer")), kind, _string(entry.get("type")), error)


def _text(entry: Mapping[str, Any]) -> Text:
    return Text(
        name=_string(entry.get("name")),
        sha256=_string(entry.get("sha256")),
        tokens=_integer(entry.get("tokens")),
        chunks=_integer(entry.get("chunks")),
        scored_tokens=_integer(entry.get("scored_tokens")),
    )


def _items(value: object, read: Callable[[Mapping[str, Any]], Item]) -> tuple[Item, ...]:
    return tuple(read(item) for item in _sequence(value) if isinstance(item, Mapping))


def _mapping(value: object) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def _sequence(value: object) -> Sequence[Any]:
    return value if isinstance(value, Sequence) and not isinstance(value, str | bytes) else ()


def _string(value: object) -> str:
    """A name without unprintable characters (line breaks, bidi marks, lone surrogates), which must not reach a page."""
    if not isinstance(value, str):
        return ""
    return "".join(c if c.isprintable() else " " if c.isspace() else "\ufffd" for c in value)


def _number(value: object) -> float | None:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return None
    return value


def _integer(value: object) -> int | None:
    number = _number(value)
    return None if number is None else int(number)


def _layers(value: object, of: int | None = None) -> str | None:
    """Layers on the GPU as a report shows them: a number, "N (all)", or a word."""
    number = _integer(value)
    if number is not None and of is not None and 0 < of <= number:
        return f"{of} (all)"
    return str(number) if number is not None else _string(value) or None


def _value(entry: object, value: str = "value", error: str = "error") -> Value | None:
    mapping = _mapping(entry)
    number = _number(mapping.get(value))
    return None if number is None else Value(number, _number(mapping.get(error)))
