"""How the figures were measured, in sentences, and what is known of the machine and the files."""

from quantkit.measurement.document import Report, Text
from quantkit.report.figures import duration, size, whole


def method(report: Report) -> str:
    """One line for under a table: windows, scoring, pairing."""
    parts = []
    if report.ctx:
        parts.append(f"Perplexity as llama-perplexity measures it: windows of {whole(report.ctx)} tokens")
        parts.append("the second half of each scored")
    else:
        parts.append("Perplexity as llama-perplexity measures it")
    texts = [said for said in map(_text, report.texts) if said]
    if texts:
        parts.append("; ".join(texts))
    sentence = ", ".join(parts) + ". ± is one standard error."
    reference = report.reference
    if reference is not None and report.candidates:
        sentence += (
            f" Changes, KL divergence (nats a token) and the same top token compare each model with {reference.label}"
            " on the same tokens, which is why their errors are smaller than perplexity's own."
        )
    return sentence


def machine(report: Report) -> list[tuple[str, str]]:
    """What it ran on and how, as (name, value)."""
    cores = f", {report.cores} cores" if report.cores else ""
    found = [("processor", report.cpu + cores if report.cpu else ""), ("memory", _size(report.memory_bytes))]
    found += [("GPU", f"{name}, {size(held)}" if held else name) for name, held in report.gpus]
    found += [
        ("threads", str(report.threads or "")),
        ("context", f"{whole(report.ctx)} tokens" if report.ctx else ""),
        ("chunks asked for", str(report.chunks or "")),
        ("time taken", duration(report.seconds) if report.seconds is not None else ""),
        ("measured at", report.created),
        ("quantkit", report.version),
    ]
    return [(name, value) for name, value in found if value]


def _size(count: float | None) -> str:
    return size(count) if count else ""


def _text(text: Text) -> str:
    counted = []
    if text.chunks is not None:
        counted.append(f"{whole(text.chunks)} windows")
    if text.scored_tokens is not None:
        counted.append(f"{whole(text.scored_tokens)} tokens scored")
    return f"{text.name} ({', '.join(counted)})" if counted else ""
