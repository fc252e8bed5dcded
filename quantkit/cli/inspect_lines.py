"""A model's description as lines for a terminal."""

import textwrap
from collections.abc import Sequence

from quantkit.cli.inspect_origin import origin_lines
from quantkit.cli.inspect_shape import context_words, expert_words, quantized_words, shape_words
from quantkit.cli.output import human_count, printable
from quantkit.inspection.description import Description, Template, Vocabulary
from quantkit.units import human_bytes

_LABEL = 12
_MOST_TOKENS, _MOST_LINES = 12, 24


def lines_of(description: Description, width: int) -> list[str]:
    """The description for people, as lines of at most `width` characters where words allow."""
    lines = [printable(f"{description.name}: {_kind(description)}"), ""]
    for label, text in _facts(description):
        lines += _labelled(label, text, width)
    lines += _types(description)
    lines += _outputs(description)
    for label, text in (*_vocabulary_words(description.vocabulary), *origin_lines(description)):
        lines += _labelled(label, text, width)
    lines += _template(description, width)
    for note in description.notes:
        lines += _labelled("note", note, width)
    return lines


def _labelled(label: str, text: str, width: int) -> list[str]:
    if not text:
        return []
    wrapped = textwrap.wrap(printable(text), width - _LABEL, break_long_words=False, break_on_hyphens=False) or [""]
    return [f"{label if i == 0 else '':<{_LABEL}}{line}" for i, line in enumerate(wrapped)]


def _kind(description: Description) -> str:
    words = [description.kind if description.type is None else f"{description.type} {description.kind}"]
    if len(description.files) > 1 and not description.outputs:
        words.append(f"in {len(description.files)} files")
    return " ".join(words)


def _facts(description: Description) -> list[tuple[str, str]]:
    shape, weights = description.shape, description.weights
    facts = []
    if description.family or description.architecture:
        facts.append(("family", f"{description.family or 'unknown'} ({description.architecture or '?'})"))
    if weights:
        active = ""
        if weights.active_parameters != weights.parameters:
            active = f", {human_count(weights.active_parameters)} active for a token"
        facts.append(("parameters", f"{human_count(weights.parameters)}{active}"))
    facts += [("shape", shape_words(shape)), ("experts", expert_words(shape)), ("context", context_words(shape))]
    if description.quantization:
        facts.append(("quantized", quantized_words(description.quantization)))
    if description.convertible is True:
        facts.append(("converts", "yes, quantkit gguf takes it"))
    elif description.convertible is False:
        facts.append(("converts", f"no: {description.why_not}"))
    size = human_bytes(description.size)
    first = description.files[0].name if description.files else ""
    if len(description.files) == 1:
        facts.append(("size", f"{size}, {first}"))
    elif description.files:
        facts.append(
            ("size", f"{size} in {len(description.files)} files" + ("" if description.outputs else f", {first} ..."))
        )
    return facts


def _types(description: Description) -> list[str]:
    if description.weights is None:
        return []
    rows = [
        (
            group.type.lower(),
            f"{group.tensors} tensor{'s' if group.tensors > 1 else ''}",
            human_count(group.elements),
            human_bytes(group.bytes),
        )
        for group in description.weights.groups
    ]
    head = f"{description.weights.bits_per_weight:.2f} bits per weight"
    if len(description.outputs) > 1:
        head += f" in {description.outputs[0].name}"
    return [f"{'weights':<{_LABEL}}{head}", *_columns(rows)]


def _outputs(description: Description) -> list[str]:
    if not description.outputs:
        return []
    rows = [
        (
            output.type,
            f"{output.bits_per_weight:.2f} bits",
            human_bytes(sum(file.bytes for file in output.files)),
            printable(output.files[0].name) + (f" and {len(output.files) - 1} more" if len(output.files) > 1 else ""),
        )
        for output in description.outputs
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


def _vocabulary_words(vocabulary: Vocabulary | None) -> list[tuple[str, str]]:
    if vocabulary is None:
        return []
    kind = "/".join(filter(None, (vocabulary.model, vocabulary.pre if vocabulary.pre != "default" else None)))
    text = f"{vocabulary.size} tokens" + (f", {kind}" if kind else "")
    if vocabulary.adds_bos is not None:
        text += ", adds BOS" if vocabulary.adds_bos else ", no BOS added"
    text += ", adds EOS" if vocabulary.adds_eos else ""
    special = "  ".join(f"{token.role} {token.id} {token.text!r}" for token in vocabulary.special[:_MOST_TOKENS])
    return [("vocabulary", text), ("", special)]


def _template(description: Description, width: int) -> list[str]:
    template = description.template
    if template is None:
        if description.vocabulary is None:
            return []
        return _labelled(
            "template", f"none{f'; {description.suggested_template}' if description.suggested_template else ''}", width
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
    words = template.name or "unknown"
    if template.error is not None:
        words += f"; {template.error}"
    else:
        words += f"; {', '.join(template.roles)} and the prompt for an answer render as"
    if template.others:
        words = f"{words.removesuffix(' render as')} (and others named {', '.join(template.others)})"
        words += " render as" if template.error is None else ""
    return words
