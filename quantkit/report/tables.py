"""The tables of a report as plain text cells, for Markdown and HTML alike."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from quantkit.measurement.document import DeviceMemory, Model, Quality, Report, Text
from quantkit.packed.registry import FORMATS
from quantkit.report.figures import ABSENT, change, percent, plus_minus, significant, size, whole


@dataclass(frozen=True)
class Table:
    """The first column names the row; every other one is figures. `rows` are as long as `headers`."""

    title: str
    headers: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    groups: tuple[str, ...] = ()
    """Where given, what each column belongs to, as long as `headers`; neighbours of one group go under one heading."""


QualityColumn = tuple[str, Callable[[Quality | None], str]]

_IDENTITY = ("model", "size", "bits/weight")
_QUALITY: tuple[QualityColumn, ...] = (
    ("perplexity", lambda on: ABSENT if on is None else plus_minus(on.perplexity, decimals=2)),
    ("perplexity change", lambda on: ABSENT if on is None else change(on.ratio)),
    ("KL mean", lambda on: ABSENT if on is None or on.kl is None else plus_minus(on.kl.mean)),
    ("KL 99%", lambda on: ABSENT if on is None or on.kl is None else significant(on.kl.p99)),
    ("same top token", lambda on: ABSENT if on is None else percent(on.top1)),
)
_FORMATS = {"gguf": "GGUF", "hf": "Hugging Face", **{name: kind.label for name, kind in FORMATS.items()}}
_SHORT = (*_QUALITY[:2], _QUALITY[4])
_DETAIL: tuple[QualityColumn, ...] = (
    ("perplexity difference", lambda on: ABSENT if on is None else plus_minus(on.difference, decimals=2, sign=True)),
    ("KL median", lambda on: ABSENT if on is None or on.kl is None else significant(on.kl.median)),
    ("KL 90%", lambda on: ABSENT if on is None or on.kl is None else significant(on.kl.p90)),
    ("KL 99.9%", lambda on: ABSENT if on is None or on.kl is None else significant(on.kl.p999)),
    ("KL max", lambda on: ABSENT if on is None or on.kl is None else significant(on.kl.max)),
    ("top 5 overlap", lambda on: ABSENT if on is None else percent(on.top5)),
    ("next token's probability", lambda on: ABSENT if on is None else percent(on.probability, sign=True)),
    ("its change, RMS", lambda on: ABSENT if on is None else percent(on.probability_rms)),
)


def overview(report: Report) -> Table:
    """The first table: all columns of one text, or the main columns of several texts side by side; or embeddings."""
    if any(model.embeddings for model in report.models):
        return embeddings(report)
    several = len(report.texts) > 1
    columns = [(text.name, *column) for text in report.texts for column in (_SHORT if several else _QUALITY)]
    rows = [(*_identity(model), *(read(model.on(text)) for text, _, read in columns)) for model in report.models]
    groups = ("", "", "", *(text for text, *_ in columns)) if several else ()
    return _trimmed("Overview", (*_IDENTITY, *(label for _, label, _ in columns)), rows, groups)


def embeddings(report: Report) -> Table:
    """The figures of encoders on the retrieval set."""
    columns = (
        ("own passage first", "recall", "{:.1%}"),
        ("cosine", "cosine_mean", "{:.5f}"),
        ("worst", "cosine_worst", "{:.5f}"),
        ("rank correlation", "rank_correlation", "{:.5f}"),
        ("top-10 overlap", "top10_overlap", "{:.1%}"),
        ("score correlation", "score_correlation", "{:.5f}"),
    )
    measured = [model for model in report.models if model.embeddings]

    def cell(model: Model, name: str, form: str) -> str:
        value = getattr(model.embeddings, name)
        return ("" if model.is_reference else ABSENT) if value is None else form.format(value)

    rows = [(*_identity(model), *(cell(model, name, form) for _, name, form in columns)) for model in measured]
    kept = [column for column, (_, name, _) in enumerate(columns) if any(getattr(m.embeddings, name) for m in measured)]
    first = len(_IDENTITY)
    headers = (*_IDENTITY, *(columns[column][0] for column in kept))
    title = next((model.embeddings.set for model in measured if model.embeddings), "Embeddings")
    return Table(title, headers, tuple((*row[:first], *(row[first + column] for column in kept)) for row in rows))


def pictures(report: Report) -> Table:
    """Agreement of the answers to questions about pictures; no rows without any."""
    measured = [(model, model.pictures) for model in report.models if model.pictures is not None]
    rows = [
        (
            *_identity(model),
            size(on.projector_bytes),
            _share_of(on.same_answers, on.pictures, model),
            "" if model.is_reference else ABSENT if on.top1 is None else f"{on.top1:.1%}",
            "" if model.is_reference else significant(on.kl),
        )
        for model, on in measured
    ]
    headers = (*_IDENTITY, "projector", "same answers", "same top token", "KL mean")
    return Table("Answers about pictures", headers, tuple(rows))


def _share_of(count: int | None, whole_count: int | None, model: Model) -> str:
    if model.is_reference:
        return ""
    return ABSENT if count is None or whole_count is None else f"{count} of {whole_count}"


def quality(report: Report, text: Text) -> Table:
    """One text in full: the columns of a model card."""
    rows = [
        (*_identity(model), *(read(model.on(text.name)) for _, read in _QUALITY))
        for model in report.models
        if model.on(text.name) is not None
    ]
    return _trimmed(text.name, (*_IDENTITY, *(label for label, _ in _QUALITY)), rows)


def detail(report: Report, text: Text) -> Table:
    """The other figures of the candidates on a text."""
    rows = [
        (model.label, *(read(model.on(text.name)) for _, read in _DETAIL))
        for model in report.candidates
        if model.on(text.name) is not None
    ]
    return _trimmed(text.name, ("model", *(label for label, _ in _DETAIL)), rows)


def memory(report: Report) -> Table:
    """A row for each device of each load of each model; the first row of a load has the figures of the process."""
    contexts = {row.n_ctx for model in report.models for row in model.memory}
    rows = []
    for model in report.models:
        for row in model.memory:
            driver = dict(row.driver)
            for number, device in enumerate(row.devices or (DeviceMemory("", {}),)):
                rows.append(
                    (
                        model.label,
                        row.gpu_layers,
                        whole(row.n_ctx),
                        device.name or ABSENT,
                        *(size(device.parts.get(kind)) for kind in ("weights", "kv", "compute", "other")),
                        size(device.total) if device.parts else ABSENT,
                        size(row.peak_rss) if number == 0 else "",
                        size(row.peak_pss) if number == 0 else "",
                        size(driver.pop(device.name, None)),
                    )
                )
            rows += [
                (model.label, row.gpu_layers, whole(row.n_ctx), name, *[ABSENT] * 5, "", "", size(used))
                for name, used in driver.items()
            ]
    headers = ("model", "layers on GPU", "context", "device", "weights", "KV cache", "compute", "other", "together")
    without = "context" if len(contexts) == 1 else ""
    return _trimmed("Memory", (*headers, "peak RSS", "peak PSS", "driver"), rows, without=without)


def speed(report: Report) -> Table:
    """A row for each speed measurement of each model."""
    rows = [
        (
            model.label,
            row.gpu_layers or ABSENT,
            plus_minus(row.prompt, decimals=1),
            plus_minus(row.generation, decimals=1),
            ABSENT if row.estimate is None else f"{row.estimate:.1f}",
            whole(row.cpu_moe) if row.cpu_moe else "",
            whole(row.prompt_tokens),
            whole(row.generated_tokens),
            whole(row.threads),
            whole(row.repetitions),
        )
        for model in report.models
        for row in model.speed
    ]
    headers = ("model", "layers on GPU", "prompt, tokens/s", "generation, tokens/s", "estimate", "experts on CPU")
    return _trimmed("Speed", (*headers, "prompt tokens", "generated tokens", "threads", "repetitions"), rows)


def files(report: Report) -> Table:
    """The file of each model, and its engine."""
    rows = [
        (
            model.label,
            model.path or model.name,
            _FORMATS.get(model.kind, model.kind),
            f"{model.bytes:,.0f}" if model.bytes is not None else ABSENT,
            whole(model.parameters),
            model.engine,
        )
        for model in report.models
    ]
    headers = ("model", "file", "format", "bytes", "parameters", "measured with")
    return _trimmed("Models", headers, rows)


def texts(report: Report) -> Table:
    """A row for each text."""
    rows = [
        (text.name, whole(text.tokens), whole(text.chunks), whole(text.scored_tokens), text.sha256)
        for text in report.texts
    ]
    return _trimmed("Texts", ("text", "tokens", "windows", "tokens scored", "sha256"), rows)


def _identity(model: Model) -> tuple[str, str, str]:
    bits = ABSENT if model.bits_per_weight is None else f"{model.bits_per_weight:.2f}"
    label = f"{model.label} (reference)" if model.is_reference else model.label
    return label, size(model.bytes), bits


def _trimmed(
    title: str, headers: Sequence[str], rows: Sequence[Sequence[str]], groups: Sequence[str] = (), without: str = ""
) -> Table:
    """The table without its empty columns and the column named `without`."""
    kept = [
        i
        for i, header in enumerate(headers)
        if i == 0 or (header != without and any(row[i] not in (ABSENT, "") for row in rows))
    ]
    return Table(
        title,
        tuple(headers[i] for i in kept),
        tuple(tuple(row[i] for i in kept) for row in rows),
        tuple(groups[i] for i in kept) if groups else (),
    )
