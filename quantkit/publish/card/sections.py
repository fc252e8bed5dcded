"""The parts of a card that say what is in the folder, what it costs and which to take."""

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
"""Of a machine's memory, for everything else that runs on it."""


def opening(facts: CardFacts) -> str:
    """One paragraph on what this is."""
    model, weights = facts.model, facts.weights
    base = facts.base_model
    of = f"[{plain(base)}](https://huggingface.co/{base})" if base and is_hub_id(base) else plain(base or model.name)
    if facts.kind == "gguf":
        types = listed([f"**{plain(each.type.upper())}**" for each in weights])
        what = f"{of} as GGUF for llama.cpp, Ollama and what builds on them, in {types}."
    else:
        what = f"{of} quantized with {KINDS[facts.kind]}{_scheme(facts)}, for GPUs: vLLM, transformers and others."
    found = facts.description
    said = []
    if found.weights is not None:
        count = found.weights.parameters
        said.append(f"{_billions(count)} parameters")
        if found.weights.active_parameters < count:
            said.append(f"of which {_billions(found.weights.active_parameters)} work on a token")
    if facts.context_length:
        said.append(f"a context of {whole(facts.context_length)} tokens")
    tail = f" The model has {listed(said)}." if said else ""
    terms = f" Its licence: {plain(facts.license)}." if facts.license else ""
    checked = all(checks_passed(each.entry) for each in weights if each.entry) and len(facts.entries) == len(weights)
    how = " Made with quantkit, which checked it against the source before it gave it its name." if checked else ""
    return f"{what}{tail}{terms}{how}"


def files(facts: CardFacts) -> str:
    """The table of files, with their figures where there is a report; further texts get tables of their own."""
    report = facts.report
    parts = [_files_table(facts, report, report.texts[0] if report and report.texts else None)]
    if report is not None:
        for text in report.texts[1:]:
            parts += [f"On {plain(text.name)}:", _files_table(facts, report, text)]
        if report.texts:
            parts.append(plain(method(report)))
    else:
        parts.append("What the quantization costs was not measured.")
    return "\n\n".join(parts)


def measured(facts: CardFacts) -> str | None:
    """Memory and speed, where they were measured, and on what."""
    if facts.report is None:
        return None
    report = replace(facts.report, models=tuple(each for each in facts.report.models if _of(facts, each)))
    found = [each for each in (memory(report), speed(report)) if each.rows]
    if not found:
        return None
    on = {name: value for name, value in machine(report) if name in ("processor", "memory", "GPU", "measured at")}
    ran = f"Measured with llama.cpp on {plain(', '.join(on.values()))}." if on else "Measured with llama.cpp."
    contexts = {row.n_ctx for model in report.models for row in model.memory if row.n_ctx}
    if len(contexts) == 1:
        ran += f" Memory is for a context of {whole(next(iter(contexts)))} tokens."
    return "\n\n".join([ran, *(_report_table(each) for each in found)])


def choice(facts: CardFacts) -> str:
    """Which file to take: what the figures come to, then by the memory of the machine."""
    said = [plain(sentence) for sentence in verdict(facts.report)] if facts.report is not None else []
    if facts.kind != "gguf":
        needed = size(facts.weights[0].bytes)
        said.append(f"The weights take {needed} of the GPU; the context's cache and the runtime come on top.")
        return bullets(said)
    best_first = sorted(facts.weights, key=_worth, reverse=True)
    rows: list[tuple[int, Weights]] = []
    for gigabytes in MACHINES:
        fits = next((each for each in best_first if _needs(each) <= gigabytes * 1e9 * (1 - SPARE)), None)
        if fits is not None and (not rows or rows[-1][1] is not fits):
            rows.append((gigabytes, fits))
    for gigabytes, each in rows:
        said.append(f"With {gigabytes} GB of memory or more: **{plain(each.type.upper())}**, {_need_words(each)}.")
    said.append(
        f"That leaves {SPARE:.0%} of the memory to everything else; a longer context takes more. A GPU that holds the"
        " whole file answers fastest, and llama.cpp splits a model between GPU and memory where it does not."
    )
    return bullets(said)


def conversation(facts: CardFacts) -> str | None:
    """The chat template on a short conversation."""
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
    for each in facts.weights:
        found = each.measured.on(text.name) if each.measured is not None and text is not None else None
        name = link(each.path, each.path) if len(each.files) == 1 and facts.kind == "gguf" else _several(each)
        kind = plain(each.type.upper()) + (" (reference)" if each.measured and each.measured.is_reference else "")
        rows.append([name, kind, size(each.bytes), _bits(each.bits_per_weight), *_figures(found)])
    used = [i for i in range(len(headers)) if any(row[i] != ABSENT for row in rows)]
    return table([headers[i] for i in used], [[row[i] for i in used] for row in rows])


def _figures(on: Quality | None) -> list[str]:
    if on is None:
        return [ABSENT] * 4
    kl = on.kl.mean if on.kl is not None else None
    return [plus_minus(on.perplexity, decimals=2), change(on.ratio), plus_minus(kl), percent(on.top1)]


def _several(weights: Weights) -> str:
    shards = f" ({len(weights.files)} files)" if len(weights.files) > 1 else ""
    return f"{link(weights.path, weights.path)}{shards}"


def _report_table(found: Table) -> str:
    return table([plain(each) for each in found.headers], [[plain(cell) for cell in row] for row in found.rows])


def _of(facts: CardFacts, model: Model) -> bool:
    return any(each.measured is not None and each.measured.label == model.label for each in facts.weights)


def _worth(weights: Weights) -> tuple[float, float]:
    """Better first: by the divergence where all have one, which a card of one report has or has not; else by bits."""
    quality = weights.measured.quality[0] if weights.measured and weights.measured.quality else None
    kl = quality.kl.mean.value if quality and quality.kl and quality.kl.mean else None
    if weights.measured is not None and weights.measured.is_reference:
        kl = 0.0
    return (-kl if kl is not None else -1e9, weights.bits_per_weight or 0.0)


def _measured_memory(weights: Weights) -> tuple[float, int | None] | None:
    """(bytes, context) of the load without a GPU."""
    for row in weights.measured.memory if weights.measured is not None else ():
        together = sum(device.total for device in row.devices)
        if row.gpu_layers == "0" and together:
            return max(together, row.peak_rss or 0.0), row.n_ctx
    return None


def _needs(weights: Weights) -> float:
    found = _measured_memory(weights)
    return found[0] if found is not None else weights.bytes


def _need_words(weights: Weights) -> str:
    found = _measured_memory(weights)
    if found is None:
        return f"a file of {size(weights.bytes)} that has to fit, with the context's cache on top (not measured)"
    context = f" with a context of {whole(found[1])} tokens" if found[1] else ""
    return f"which took {size(found[0])}{context}, measured"


def _scheme(facts: CardFacts) -> str:
    found = facts.description.quantization
    if found is None or not found.bits:
        return ""
    group = f", groups of {found.group}" if found.group and found.group > 0 else ""
    return f" to {found.bits} bits{group}"


def _bits(value: float | None) -> str:
    return ABSENT if value is None else f"{value:.2f}"


def _billions(count: int) -> str:
    scaled, unit = (count / 1e9, "billion") if count >= 1e9 else (count / 1e6, "million")
    return f"{scaled:.3g} {unit}"


def shown(headings: Sequence[tuple[str, str | None]]) -> str:
    """The parts that there are, under their headings."""
    return "\n\n".join(f"## {heading}\n\n{text}" for heading, text in headings if text)
