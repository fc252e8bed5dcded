"""The figures of a measurement in tables narrow enough for a terminal; the report has the rest."""

from quantkit.cli.output import Out
from quantkit.measurement.document import Model, Report, Speed, Text
from quantkit.measurement.measure import Measurement
from quantkit.report.figures import ABSENT, change, plus_minus, significant, size
from quantkit.report.tables import Table, embeddings, pictures
from quantkit.report.verdict import verdict

_QUALITY = (
    ("model", "left"),
    ("size", "right"),
    ("bits", "right"),
    ("perplexity", "right"),
    ("change", "right"),
    ("KL", "right"),
    ("top-1", "right"),
)
_MEMORY = (
    ("model", "left"),
    ("layers", "right"),
    ("device", "left"),
    ("weights", "right"),
    ("KV", "right"),
    ("compute", "right"),
    ("other", "right"),
    ("peak RSS", "right"),
)
_SHORT = {
    "bits/weight": "bits",
    "own passage first": "first",
    "rank correlation": "ranks",
    "top-10 overlap": "top 10",
    "score correlation": "scores",
    "same top token": "top-1",
    "KL mean": "KL",
}
"""Headers of the tables of embeddings and pictures in a terminal."""
_SPEED = (
    ("model", "left"),
    ("layers", "right"),
    ("prompt", "right"),
    ("generation", "right"),
    ("estimate", "right"),
    ("ratio", "right"),
)


def show_measurement(measured: Measurement, out: Out) -> None:
    """Print the tables, the verdict of each candidate, and the files of the report."""
    report = measured.report
    _show_tables(report, out)
    for sentence in verdict(report):
        out.say(sentence)
    pages = [path for path in measured.files if path.suffix in (".html", ".md", ".json")]
    out.say("\n" + "\n".join(str(path) for path in reversed(pages)))


def _show_tables(report: Report, out: Out) -> None:
    """Print the quality, one table for each text; then memory and speed if they are measured."""
    for text in report.texts:
        out.table(_QUALITY, [_quality(model, text) for model in report.models], _title(text))
        out.say("")
    if any(model.embeddings for model in report.models):
        _show(embeddings(report), out)
    if (table := pictures(report)).rows:
        _show(table, out)
    memory = [row for model in report.models for row in _memory(model)]
    if memory:
        contexts = sorted({row.n_ctx for model in report.models for row in model.memory if row.n_ctx})
        out.table(_MEMORY, memory, f"memory, context {', '.join(map(str, contexts))}")
        out.say("")
    speed = [row for model in report.models for row in _speed(model)]
    if speed:
        out.table(_SPEED, speed, "tokens a second; the estimate is the plan's of the generation")
        for sentence in _bandwidths(report):
            out.note(sentence)
        out.say("")


def _show(table: Table, out: Out) -> None:
    columns = [(_SHORT.get(name, name), "right" if column else "left") for column, name in enumerate(table.headers)]
    out.table(columns, [list(row) for row in table.rows], table.title)
    out.say("")


def _title(text: Text) -> str:
    chunks = "1 chunk" if text.chunks == 1 else f"{text.chunks} chunks"
    return f"{text.name}: {chunks}, {text.scored_tokens} tokens scored"


def _quality(model: Model, text: Text) -> list[str]:
    on = model.on(text.name)
    kl = None if on is None or on.kl is None else on.kl.mean
    return [
        model.label,
        size(model.bytes),
        ABSENT if model.bits_per_weight is None else f"{model.bits_per_weight:.2f}",
        ABSENT if on is None else plus_minus(on.perplexity, decimals=2),
        "reference" if model.is_reference else change(None if on is None else on.ratio),
        "" if model.is_reference else significant(None if kl is None else kl.value, 3),
        "" if model.is_reference else ABSENT if on is None or on.top1 is None else f"{on.top1.value:.2%}",
    ]


def _memory(model: Model) -> list[list[str]]:
    return [
        [
            model.label if not device_number and not number else "",
            str(row.gpu_layers) if not device_number else "",
            device.name,
            *(size(device.parts.get(kind)) for kind in ("weights", "kv", "compute", "other")),
            size(row.peak_rss) if not device_number else "",
        ]
        for number, row in enumerate(model.memory)
        for device_number, device in enumerate(row.devices)
    ]


def _speed(model: Model) -> list[list[str]]:
    return [
        [
            "" if number else model.label,
            str(row.gpu_layers),
            plus_minus(row.prompt, decimals=1),
            plus_minus(row.generation, decimals=1),
            *_estimate(row),
        ]
        for number, row in enumerate(model.speed)
    ]


def _estimate(row: Speed) -> tuple[str, str]:
    """The estimate of the generation, and its ratio to the measurement."""
    if row.estimate is None or row.generation is None:
        return ABSENT, ""
    return f"{row.estimate:.1f}", f"{row.estimate / row.generation.value:.2f}"


def _bandwidths(report: Report) -> list[str]:
    """What each device was measured to read, a sentence for each model."""
    return [
        f"estimates of {model.label} from measured bandwidths: "
        + "; ".join(
            f"{device.name} " + ", ".join(f"{rate / 1e9:.1f} GB/s ({kind.lower()})" for kind, rate in device.by_type)
            for device in model.device_speed
        )
        for model in report.models
        if model.device_speed
    ]
