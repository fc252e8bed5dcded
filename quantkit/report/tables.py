"""The tables of a report as plain text cells, for Markdown and HTML alike."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from quantkit.report.document import DeviceMemory, Model, Quality, Report, Text
from quantkit.report.figures import ABSENT, change, percent, plus_minus, significant, size, whole


@dataclass(frozen=True)
class Table:
    """The first column names the row; every other one is figures. `rows` are as long as `headers`."""

    title: str
    headers: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    note: str = ""


QualityColumn = tuple[str, Callable[[Quality | None], str]]

_QUALITY: tuple[QualityColumn, ...] = (
    ("perplexity", lambda on: ABSENT if on is None else plus_minus(on.perplexity, decimals=2)),
    ("perplexity change", lambda on: ABSENT if on is None else change(on.ratio)),
    ("KL mean", lambda on: ABSENT if on is None or on.kl is None else plus_minus(on.kl.mean)),
    ("KL 99%", lambda on: ABSENT if on is None or on.kl is None else significant(on.kl.p99)),
    ("same top token", lambda on: ABSENT if on is None else percent(on.top1)),
)
_SHORT = (*_QUALITY[:2], _QUALITY[4])
_DETAIL: tuple[QualityColumn, ...] = (
    ("perplexity difference", lambda on: ABSENT if on is None else plus_minus(on.difference, decimals=2, sign=True)),
    ("KL median", lambda on: ABSENT if on is None or on.kl is None else significant(on.kl.median)),
    ("KL 90%", lambda on: ABSENT if on is None or on.kl is None else significant(on.kl.p90)),
    ("KL 99.9%", lambda on: ABSENT if on is None or on.kl is None else significant(on.kl.p999)),
    ("KL max", lambda on: ABSENT if on is None or on.kl is None else significant(on.kl.max)),
    ("top 5 overlap", lambda on: ABSENT if on is None else percent(on.top5)),
    ("probability of the next token", lambda on: ABSENT if on is None else percent(on.probability, sign=True)),
    ("its change, RMS", lambda on: ABSENT if on is None else percent(on.probability_rms)),
)


def overview(report: Report) -> Table:
    """What a reader wants first: all columns of one text, or several texts side by side with the most telling ones."""
    several = len(report.texts) > 1
    columns = [
        (f"{label}, {text.name}" if several else label, text.name, read)
        for text in report.texts
        for label, read in (_SHORT if several else _QUALITY)
    ]
    rows = [(*_identity(model), *(read(model.on(text)) for _, text, read in columns)) for model in report.models]
    return _trimmed("Overview", ("model", "size", "bits/weight", *(label for label, _, _ in columns)), rows)


def quality(report: Report, text: Text) -> Table:
    """One text in full: the columns of a model card."""
    rows = [
        (*_identity(model), *(read(model.on(text.name)) for _, read in _QUALITY))
        for model in report.models
        if model.on(text.name) is not None
    ]
    return _trimmed(text.name, ("model", "size", "bits/weight", *(label for label, _ in _QUALITY)), rows)


def detail(report: Report, text: Text) -> Table:
    """The rest of what was measured on a text, candidates only."""
    rows = [
        (model.label, *(read(model.on(text.name)) for _, read in _DETAIL))
        for model in report.candidates
        if model.on(text.name) is not None
    ]
    return _trimmed(text.name, ("model", *(label for label, _ in _DETAIL)), rows)


def memory(report: Report) -> Table:
    """A row for each device of each load of each model, with the process's own figures on the first of them."""
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
    table = _trimmed("Memory", (*headers, "peak RSS", "peak PSS", "driver"), rows)
    if len(contexts) == 1 and None not in contexts:
        table = _without(table, "context")
    return table


def speed(report: Report) -> Table:
    rows = [
        (
            model.label,
            row.gpu_layers or ABSENT,
            whole(row.threads),
            whole(row.repetitions),
            _tokens(row.prompt_tokens),
            plus_minus(row.prompt, decimals=1),
            _tokens(row.generated_tokens),
            plus_minus(row.generation, decimals=1),
        )
        for model in report.models
        for row in model.speed
    ]
    headers = ("model", "layers on GPU", "threads", "repetitions", "prompt", "prompt, tokens/s")
    return _trimmed("Speed", (*headers, "generated", "generation, tokens/s"), rows)


def _identity(model: Model) -> tuple[str, str, str]:
    bits = ABSENT if model.bits_per_weight is None else f"{model.bits_per_weight:.2f}"
    label = f"{model.label} (reference)" if model.is_reference else model.label
    return label, size(model.bytes), bits


def _tokens(count: int | None) -> str:
    return ABSENT if count is None else f"{whole(count)} tokens"


def _trimmed(title: str, headers: Sequence[str], rows: Sequence[Sequence[str]]) -> Table:
    """Without the columns that no row has anything in."""
    kept = [i for i in range(len(headers)) if i == 0 or any(row[i] not in (ABSENT, "") for row in rows)]
    return Table(title, tuple(headers[i] for i in kept), tuple(tuple(row[i] for i in kept) for row in rows))


def _without(table: Table, header: str) -> Table:
    if header not in table.headers:
        return table
    at = table.headers.index(header)
    rows = tuple((*row[:at], *row[at + 1 :]) for row in table.rows)
    return Table(table.title, (*table.headers[:at], *table.headers[at + 1 :]), rows)
