"""`quantkit inspect`: what any checkpoint or output is, from its headers."""

import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Annotated, Any

import typer

from quantkit.cli.output import Out, human_bytes, human_count, printable
from quantkit.inspection import Description, inspect_source
from quantkit.inspection.description import Quantization, Shape, Template, Vocabulary

_LABEL = 12
_MOST_TOKENS, _MOST_LINES = 12, 24


def inspect(
    out: Out,
    path: Annotated[
        str,
        typer.Argument(
            metavar="PATH",
            help="A checkpoint folder, a hub id (ORG/NAME or ORG/NAME@REVISION), a GGUF file, or a folder of them.",
            show_default=False,
        ),
    ],
    offline: Annotated[bool, typer.Option("--offline", help="Use only what the hub's cache holds.")] = False,
) -> None:
    """Show what a checkpoint or an output is, from headers alone.

    Reads headers only; of a model on the hub no weights are downloaded. The chat template is shown as it renders a
    sample conversation.

    Example: quantkit inspect ORG/NAME
    """
    found = inspect_source(path, offline=offline)
    out.document({"command": "inspect", **_document(found)})
    width = out.stdout.width if out.stdout.is_terminal else 100
    for line in lines_of(found, max(width, 60)):
        out.say(line)


def _document(found: Description) -> dict[str, Any]:
    document = asdict(found)
    document["bytes"] = found.size
    return document


def lines_of(found: Description, width: int) -> list[str]:
    """The description for people, as lines of at most `width` characters where words allow."""
    lines = [printable(f"{found.name}: {_kind(found)}"), ""]
    for label, text in _facts(found):
        lines += _labelled(label, text, width)
    lines += _types(found)
    lines += _outputs(found)
    for label, text in (*_words(found.vocabulary), *_origin(found)):
        lines += _labelled(label, text, width)
    lines += _template(found, width)
    for note in found.notes:
        lines += _labelled("note", note, width)
    return lines


def _labelled(label: str, text: str, width: int) -> list[str]:
    if not text:
        return []
    wrapped = textwrap.wrap(printable(text), width - _LABEL, break_long_words=False, break_on_hyphens=False) or [""]
    return [f"{label if i == 0 else '':<{_LABEL}}{line}" for i, line in enumerate(wrapped)]


def _kind(found: Description) -> str:
    words = [found.kind if found.type is None else f"{found.type} {found.kind}"]
    if len(found.files) > 1 and not found.outputs:
        words.append(f"in {len(found.files)} files")
    return " ".join(words)


def _facts(found: Description) -> list[tuple[str, str]]:
    shape, weights = found.shape, found.weights
    facts = []
    if found.family or found.architecture:
        facts.append(("family", f"{found.family or 'unknown'} ({found.architecture or '?'})"))
    if weights:
        active = ""
        if weights.active_parameters != weights.parameters:
            active = f", {human_count(weights.active_parameters)} active for a token"
        facts.append(("parameters", f"{human_count(weights.parameters)}{active}"))
    facts += [("shape", _shape(shape)), ("experts", _experts(shape)), ("context", _context(shape))]
    if found.quantization:
        facts.append(("quantized", _quantized(found.quantization)))
    if found.convertible is True:
        facts.append(("converts", "yes, quantkit gguf takes it"))
    elif found.convertible is False:
        facts.append(("converts", f"no: {found.why_not}"))
    size = human_bytes(found.size)
    first = found.files[0].name if found.files else ""
    if len(found.files) == 1:
        facts.append(("size", f"{size}, {first}"))
    elif found.files:
        facts.append(("size", f"{size} in {len(found.files)} files" + ("" if found.outputs else f", {first} ...")))
    return facts


def _quantized(found: Quantization) -> str:
    words = [f"{found.linears} linears"]
    if found.symmetric is not None:
        words.append("symmetric" if found.symmetric else "asymmetric")
    if found.act_order:
        words.append("act-order")
    if found.packing:
        words.append(f"packed as {found.packing}")
    kept = f"; kept as they were: {', '.join(found.kept)}" if found.kept else ""
    return ", ".join(words) + kept


def _shape(shape: Shape) -> str:
    words = []
    if shape.layers:
        words.append(f"{shape.layers} layers")
    if shape.hidden:
        words.append(f"hidden {shape.hidden}")
    if shape.ffn:
        words.append(f"feed-forward {shape.ffn}")
    if shape.heads:
        shared = f" ({shape.kv_heads} for keys and values)" if shape.kv_heads != shape.heads else ""
        words.append(f"{shape.heads} heads{shared}" + (f" of {shape.head_dim}" if shape.head_dim else ""))
    return ", ".join(words)


def _experts(shape: Shape) -> str:
    if not shape.experts:
        return ""
    words = [f"{shape.experts}, {shape.experts_used or '?'} for each token"]
    if shape.experts_shared:
        words.append(f"{shape.experts_shared} shared")
    if shape.expert_ffn:
        words.append(f"feed-forward {shape.expert_ffn}")
    return ", ".join(words)


def _context(shape: Shape) -> str:
    words = [f"{shape.context} tokens"] if shape.context else []
    if shape.sliding_window:
        words.append(f"sliding window {shape.sliding_window}")
    if shape.positions == "rope":
        base = f" base {shape.rope_base:.10g}" if shape.rope_base else ""
        part = f" on {shape.rope_dimensions} of {shape.head_dim}" if shape.rope_dimensions else ""
        words.append(f"rope{base}{part}" + (f", scaling {shape.rope_scaling}" if shape.rope_scaling else ""))
    elif shape.positions:
        words.append({"alibi": "ALiBi"}.get(shape.positions, f"{shape.positions} positions"))
    return ", ".join(words)


def _types(found: Description) -> list[str]:
    if found.weights is None:
        return []
    rows = [
        (
            group.type.lower(),
            f"{group.tensors} tensor{'s' if group.tensors > 1 else ''}",
            human_count(group.elements),
            human_bytes(group.bytes),
        )
        for group in found.weights.groups
    ]
    head = f"{found.weights.bits_per_weight:.2f} bits per weight"
    if len(found.outputs) > 1:
        head += f" in {found.outputs[0].name}"
    return [f"{'weights':<{_LABEL}}{head}", *_columns(rows)]


def _outputs(found: Description) -> list[str]:
    if not found.outputs:
        return []
    rows = [
        (
            each.type,
            f"{each.bits_per_weight:.2f} bits",
            human_bytes(sum(file.bytes for file in each.files)),
            printable(each.files[0].name) + (f" and {len(each.files) - 1} more" if len(each.files) > 1 else ""),
        )
        for each in found.outputs
    ]
    first, *more = _columns(rows, left=(0, 3))
    return [f"{'files':<{_LABEL}}{first[_LABEL:]}", *more]


def _columns(rows: Sequence[tuple[str, ...]], left: tuple[int, ...] = (0,)) -> list[str]:
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    cells = [
        [
            text.ljust(width) if i in left else text.rjust(width)
            for i, (text, width) in enumerate(zip(row, widths, strict=True))
        ]
        for row in rows
    ]
    return [(" " * _LABEL + "  ".join(row)).rstrip() for row in cells]


def _words(vocabulary: Vocabulary | None) -> list[tuple[str, str]]:
    if vocabulary is None:
        return []
    kind = "/".join(filter(None, (vocabulary.model, vocabulary.pre if vocabulary.pre != "default" else None)))
    text = f"{vocabulary.size} tokens" + (f", {kind}" if kind else "")
    if vocabulary.adds_bos is not None:
        text += ", adds BOS" if vocabulary.adds_bos else ", no BOS added"
    text += ", adds EOS" if vocabulary.adds_eos else ""
    special = "  ".join(f"{each.role} {each.id} {each.text!r}" for each in vocabulary.special[:_MOST_TOKENS])
    return [("vocabulary", text), ("", special)]


def _origin(found: Description) -> list[tuple[str, str]]:
    if found.outputs and isinstance(found.origin, Mapping):
        entries = [entry for entry in found.origin.values() if isinstance(entry, dict)]
        return [("origin", _made(entries[0]))] if entries else []
    if found.origin is not None and "origin" in found.origin:
        return [("origin", _made(found.origin)), ("checks", _checks(found.origin))]
    return [("revision", found.revision)] if found.revision else []


def _made(entry: Mapping[str, Any]) -> str:
    origin = entry.get("origin") if isinstance(entry.get("origin"), dict) else {}
    tool = entry.get("tool") if isinstance(entry.get("tool"), dict) else {}
    revision = f"@{origin['revision']}" if origin and origin.get("revision") else ""
    words = [f"made from {(origin or {}).get('source', '?')}{revision}"]
    words.append(f"by {(tool or {}).get('name', '?')} {(tool or {}).get('version', '')}".rstrip())
    if entry.get("written"):
        words.append(f"on {entry['written']}")
    text = entry.get("calibration")
    if isinstance(text, dict):
        count, length = text.get("samples", "?"), text.get("tokens_per_sample", "?")
        return f"{' '.join(words)}, calibrated on {text.get('text', '?')} ({count} samples of {length} tokens)"
    options = entry.get("options") if isinstance(entry.get("options"), dict) else {}
    asked = [
        f"--{name.replace('_', '-').replace('-types', '-type')}" for name, value in (options or {}).items() if value
    ]
    return " ".join(words) + (f", with {', '.join(asked)}".replace("-types", "-type") if asked else "")


def _checks(entry: Mapping[str, Any]) -> str:
    checks = entry.get("checks")
    if not isinstance(checks, list):
        return ""
    return "; ".join(f"{c.get('name')} {c.get('status')}" for c in checks if isinstance(c, dict))


def _template(found: Description, width: int) -> list[str]:
    template = found.template
    if template is None:
        if found.vocabulary is None:
            return []
        return _labelled(
            "template", f"none{f'; {found.suggested_template}' if found.suggested_template else ''}", width
        )
    lines = _labelled("template", _template_words(template), width)
    if template.sample is not None:
        sample = printable(template.sample).split("\n")
        shown = (
            sample if len(sample) <= _MOST_LINES else [*sample[: _MOST_LINES // 2], "...", *sample[-_MOST_LINES // 2 :]]
        )
        lines += [f"{'':<{_LABEL}}| {line}".rstrip() for line in shown]
    return lines


def _template_words(template: Template) -> str:
    words = template.name or "of its own kind"
    if template.error is not None:
        words += f"; {template.error}"
    else:
        words += f"; {', '.join(template.roles)} and the prompt for an answer render as"
    if template.others:
        words = f"{words.removesuffix(' render as')} (and others named {', '.join(template.others)})"
        words += " render as" if template.error is None else ""
    return words
