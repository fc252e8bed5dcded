"""The sections of a card: the files, the cost of quantization, and which file to take."""

from collections.abc import Sequence
from dataclasses import replace

from quantkit.measurement.document import Model, Quality, Report, Text
from quantkit.publish.card.escaping import block, bullets, link, listed, plain, table
from quantkit.publish.card.facts import KINDS, CardFacts, Weights
from quantkit.publish.card.metadata import is_hub_id
from quantkit.publish.card.provenance import checks_passed
from quantkit.report.figures import ABSENT, change, percent, plus_minus, size, whole
from quantkit.report.method import machine, method
from quantkit.report.tables import Table, memory, speed
from quantkit.report.verdict import verdict

MACHINES = (4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256, 512, 1024)
"""Sizes of memory that machines have, in GB."""
SPARE = 0.25
"""The fraction of a machine's memory that stays free for other programs."""


def opening(facts: CardFacts) -> str:
    """One paragraph on what the folder holds."""
    model, weights = facts.model, facts.weights
    base = facts.base_model
    of = f"[{plain(base)}](https://huggingface.co/{base})" if base and is_hub_id(base) else plain(base or model.name)
    if facts.kind == "gguf":
        types = listed([f"**{plain(output.type.upper())}**" for output in weights])
        what = f"{of} as GGUF for llama.cpp, Ollama and what builds on them, in {types}."
    else:
        what = f"{of} quantized with {KINDS[facts.kind]}{_scheme(facts)}, for GPUs: vLLM, transformers and others."
    description = facts.description
    properties = []
    if description.weights is not None:
        count = description.weights.parameters
        properties.append(f"{_billions(count)} parameters")
        if description.weights.active_parameters < count:
            properties.append(f"of which {_billions(description.weights.active_parameters)} work on a token")
    if facts.context_length:
        properties.append(f"a context of {whole(facts.context_length)} tokens")
    tail = f" The model has {listed(properties)}." if properties else ""
    terms = f" Its licence: {plain(facts.license)}." if facts.license else ""
    checked = all(checks_passed(entry) for entry in facts.entries if entry) and len(facts.entries) == len(weights)
    how = " Made with quantkit, which checked the files against the source before it named them." if checked else ""
    return f"{what}{tail}{terms}{how}"


def files(facts: CardFacts) -> str:
    """The table of files, with figures if there is a report; one table for each text of the report."""
    report = facts.report
    parts = [_files_table(facts, report, report.texts[0] if report and report.texts else None)]
    if report is not None:
        for text in report.texts[1:]:
            parts += [f"On {plain(text.name)}:", _files_table(facts, report, text)]
        if report.texts:
            parts.append(plain(method(report)))
    else:
        parts.append("The cost of the quantization was not measured.")
    return "\n\n".join(parts)


def measured(facts: CardFacts) -> str | None:
    """Memory and speed, if they were measured, and the machine."""
    if facts.report is None:
        return None
    report = replace(facts.report, models=tuple(model for model in facts.report.models if _of(facts, model)))
    tables = [figures for figures in (memory(report), speed(report)) if figures.rows]
    if not tables:
        return None
    rig = {name: value for name, value in machine(report) if name in ("processor", "memory", "GPU", "measured at")}
    ran = f"Measured with llama.cpp on {plain(', '.join(rig.values()))}." if rig else "Measured with llama.cpp."
    contexts = {row.n_ctx for model in report.models for row in model.memory if row.n_ctx}
    if len(contexts) == 1:
        ran += f" Memory is for a context of {whole(next(iter(contexts)))} tokens."
    return "\n\n".join([ran, *map(_report_table, tables)])


def choice(facts: CardFacts) -> str:
    """Which file to take: the verdict of the figures, then the best file for each size of memory."""
    items = [plain(sentence) for sentence in verdict(facts.report)] if facts.report is not None else []
    if facts.kind != "gguf":
        needed = size(facts.weights[0].bytes)
        items.append(f"The weights take {needed} of GPU memory; the KV cache and the runtime need more.")
        return bullets(items)
    best_first = sorted(facts.weights, key=_worth, reverse=True)
    rows: list[tuple[int, Weights]] = []
    for gigabytes in MACHINES:
        fits = next((weights for weights in best_first if _needs(weights) <= gigabytes * 1e9 * (1 - SPARE)), None)
        if fits is not None and (not rows or rows[-1][1] is not fits):
            rows.append((gigabytes, fits))
    for gigabytes, weights in rows:
        items.append(
            f"With {gigabytes} GB of memory or more: **{plain(weights.type.upper())}**, {_need_words(weights)}."
        )
    items.append(
        f"That leaves {SPARE:.0%} of the memory to other programs; a longer context takes more. A GPU that holds the"
        " whole file is fastest; otherwise llama.cpp splits the model between GPU and memory."
    )
    return bullets(items)


def conversation(facts: CardFacts) -> str | None:
    """The chat template's output for a short conversation."""
    template = facts.description.template
    if template is None or not template.sample:
        return None
    name = f" ({plain(template.name)})" if template.name else ""
    turns = listed([plain(role) for role in template.roles]) if template.roles else "a conversation"
    return f"The template{name} renders {turns}, up to the answer, as:\n\n{block(template.sample)}"


def _files_table(facts: CardFacts, report: Report | None, text: Text | None) -> str:
    on = f" ({plain(text.name)})" if text is not None and report is not None and len(report.texts) > 1 else ""
    headers = [
        "file",
        "type",
        "size",
        "bits/weight",
        f"perplexity{on}",
        "perplexity change",
        "KL mean",
        "same top token",
    ]
    rows = []
    reference = report.reference if report is not None else None
    if reference is not None and not _of(facts, reference):
        rows.append([plain(reference.label), "(reference)", size(reference.bytes), _bits(reference.bits_per_weight)])
        rows[-1] += _figures(reference.on(text.name) if text is not None else None)
    for weights in facts.weights:
        measured_ = weights.measured
        quality = measured_.on(text.name) if measured_ is not None and text is not None else None
        single = len(weights.files) == 1 and facts.kind == "gguf"
        name = link(weights.path, weights.path) if single else _several(weights)
        kind = plain(weights.type.upper()) + (" (reference)" if measured_ and measured_.is_reference else "")
        rows.append([name, kind, size(weights.bytes), _bits(weights.bits_per_weight), *_figures(quality)])
    used = [i for i in range(len(headers)) if any(row[i] != ABSENT for row in rows)]
    return table([headers[i] for i in used], [[row[i] for i in used] for row in rows])


def _figures(quality: Quality | None) -> list[str]:
    if quality is None:
        return [ABSENT] * 4
    kl = quality.kl.mean if quality.kl is not None else None
    return [plus_minus(quality.perplexity, decimals=2), change(quality.ratio), plus_minus(kl), percent(quality.top1)]


def _several(weights: Weights) -> str:
    shards = f" ({len(weights.files)} files)" if len(weights.files) > 1 else ""
    return f"{link(weights.path, weights.path)}{shards}"


def _report_table(figures: Table) -> str:
    return table([plain(header) for header in figures.headers], [[plain(cell) for cell in row] for row in figures.rows])


def _of(facts: CardFacts, model: Model) -> bool:
    return any(output.measured is not None and output.measured.label == model.label for output in facts.weights)


def _worth(weights: Weights) -> tuple[float, float]:
    """A key that is larger for better weights: by KL divergence if the report has it, then by bits per weight."""
    quality = weights.measured.quality[0] if weights.measured and weights.measured.quality else None
    kl = quality.kl.mean.value if quality and quality.kl and quality.kl.mean else None
    if weights.measured is not None and weights.measured.is_reference:
        kl = 0.0
    return (-kl if kl is not None else -1e9, weights.bits_per_weight or 0.0)


def _measured_memory(weights: Weights) -> tuple[float, int | None] | None:
    """(bytes, context in tokens) of the measurement without a GPU."""
    for row in weights.measured.memory if weights.measured is not None else ():
        together = sum(device.total for device in row.devices)
        if row.gpu_layers == "0" and together:
            return max(together, row.peak_rss or 0.0), row.n_ctx
    return None


def _needs(weights: Weights) -> float:
    measurement = _measured_memory(weights)
    return measurement[0] if measurement is not None else weights.bytes


def _need_words(weights: Weights) -> str:
    measurement = _measured_memory(weights)
    if measurement is None:
        return f"a file of {size(weights.bytes)} that must fit together with the KV cache (not measured)"
    peak, n_ctx = measurement
    context = f" with a context of {whole(n_ctx)} tokens" if n_ctx else ""
    return f"which took {size(peak)}{context}, measured"


def _scheme(facts: CardFacts) -> str:
    quantization = facts.description.quantization
    if quantization is None or not quantization.bits:
        return ""
    group = f", groups of {quantization.group}" if quantization.group and quantization.group > 0 else ""
    return f" to {quantization.bits} bits{group}"


def _bits(value: float | None) -> str:
    return ABSENT if value is None else f"{value:.2f}"


def _billions(count: int) -> str:
    scaled, unit = (count / 1e9, "billion") if count >= 1e9 else (count / 1e6, "million")
    return f"{scaled:.3g} {unit}"


def with_headings(headings: Sequence[tuple[str, str | None]]) -> str:
    """The sections that have a text, under their headings."""
    return "\n\n".join(f"## {heading}\n\n{text}" for heading, text in headings if text)
