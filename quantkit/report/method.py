"""The method of the measurement in sentences, and the machine."""

from quantkit.measurement.document import Report, Text
from quantkit.report.figures import duration, size, whole


def method(report: Report) -> str:
    """The line under a table: windows, scoring, pairing."""
    parts = []
    if report.ctx:
        parts.append(f"Perplexity as llama-perplexity measures it: windows of {whole(report.ctx)} tokens")
        parts.append("the second half of each scored")
    else:
        parts.append("Perplexity as llama-perplexity measures it")
    texts = [text for text in map(_text, report.texts) if text]
    if texts:
        parts.append("; ".join(texts))
    sentence = ", ".join(parts) + ". ± is one standard error."
    reference = report.reference
    if reference is not None and report.candidates:
        sentence += (
            f" Changes, KL divergence (nats a token) and the same top token compare each model with {reference.label}"
            " on the same tokens. So their errors are smaller than perplexity's own. A KL divergence of 0 is that of"
            " equal probabilities; the same top token is the share of tokens with the same most likely next token."
        )
    return sentence


def machine(report: Report) -> list[tuple[str, str]]:
    """The machine and the settings, as (name, value)."""
    cores = f", {report.cores} cores" if report.cores else ""
    facts = [("processor", report.cpu + cores if report.cpu else ""), ("memory", _size(report.memory_bytes))]
    facts += [("GPU", f"{name}, {size(memory)}" if memory else name) for name, memory in report.gpus]
    facts += [
        ("threads", str(report.threads or "")),
        ("context", f"{whole(report.ctx)} tokens" if report.ctx else ""),
        ("chunks requested", str(report.chunks or "")),
        ("time taken", duration(report.seconds) if report.seconds is not None else ""),
        ("measured at", report.created),
        ("quantkit", report.version),
    ]
    return [(name, value) for name, value in facts if value]


def _size(count: float | None) -> str:
    return size(count) if count else ""


def _text(text: Text) -> str:
    counted = []
    if text.chunks is not None:
        counted.append(f"{whole(text.chunks)} windows")
    if text.scored_tokens is not None:
        counted.append(f"{whole(text.scored_tokens)} tokens scored")
    return f"{text.name} ({', '.join(counted)})" if counted else ""
