"""Ollama's names and the tags a model is published under: `4b`, `4b-q4_0`, `4b-gpu`, `latest`, `gpu`."""

import re
from collections.abc import Sequence
from dataclasses import dataclass

from quantkit.errors import UsageError

PREFERRED = ("q4_0", "q4_k_m")
"""The default type of the short tags: the first of these that is present, else the first type."""

_PART = re.compile(r"[a-z0-9_][a-z0-9._-]*")
_MAX_PART = 80
_KINDS = ("namespace", "model", "tag")
_LABEL = re.compile(r"(\d+)x([\d.]+)([KMBT])|([\d.]+)([KMBT])", re.IGNORECASE)


@dataclass(frozen=True)
class Name:
    """`HOST/NAMESPACE/MODEL:TAG`; only the model is required."""

    model: str
    namespace: str | None = None
    host: str | None = None
    tag: str | None = None

    def __str__(self) -> str:
        path = "/".join(part for part in (self.host, self.namespace, self.model) if part)
        return f"{path}:{self.tag}" if self.tag else path

    def tagged(self, tag: str | None) -> str:
        """The name with another tag, or without one for None."""
        return str(Name(self.model, self.namespace, self.host, tag))


def parse_name(text: str) -> Name:
    """The parts of a name that the user typed.

    The rules are those of Ollama's types/model/name.go (letters, digits, `_`, `-`, `.`; up to 80 of them; no dot in a
    namespace), and two of its registry's: lower case, and no two dots in a row.

    Raises:
        UsageError: a part is missing or has a character that is not allowed.
    """
    if not text or text != text.strip() or any(char.isspace() for char in text):
        raise UsageError(f"the name {text!r} has a space or is empty; write NAMESPACE/MODEL or NAMESPACE/MODEL:TAG")
    *front, last = text.split("/")
    if len(front) > 2:
        raise UsageError(f"the name {text!r} has too many slashes; write NAMESPACE/MODEL or NAMESPACE/MODEL:TAG")
    model, colon, tag = last.partition(":")
    host = front[0] if len(front) == 2 else None
    namespace = front[-1] if front else None
    if host is not None and not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9._-]*(:\d+)?", host):
        raise UsageError(f"the name {text!r} starts with {host!r}, which is not a host; write HOST/NAMESPACE/MODEL")
    for kind, part in zip(_KINDS, (namespace, model, tag if colon else None), strict=True):
        if part is not None:
            _check_part(kind, part, text)
    return Name(model, namespace, host, tag if colon else None)


def check_tag(tag: str) -> str:
    """The tag itself; raises UsageError if Ollama would refuse it."""
    _check_part("tag", tag, tag)
    return tag


def _check_part(kind: str, part: str, text: str) -> None:
    if part != part.lower():
        raise UsageError(
            f"the {kind} {part!r} has capital letters, which ollama.com does not keep; write {text.lower()}"
        )
    if not part or not _PART.fullmatch(part) or ".." in part or (kind == "namespace" and "." in part):
        why = "letters, digits, - and _" if kind == "namespace" else "letters, digits, single dots, - and _"
        raise UsageError(
            f"the {kind} of the name {text!r} is {part!r}; it may have {why}, and must not start with - or a dot"
        )
    if len(part) > _MAX_PART:
        raise UsageError(f"the {kind} {part!r} has {len(part)} characters; Ollama allows at most {_MAX_PART}")


def size_tag(label: str | None) -> str | None:
    """The tag of a GGUF's size label: "3.9B" is `4b`, "1.8B" `1.8b`, "135M" `135m`, "8x7B" `8x7b`.

    A size of 5 or more is rounded to a whole number. A smaller one keeps one decimal, but .9 is rounded up. None for a
    label of another form.
    """
    if label is None:
        return None
    match = _LABEL.match(label.strip())
    if not match:
        return None
    experts, expert_size, unit, plain, plain_unit = match.groups()
    if experts:
        return f"{experts}x{_rounded(expert_size)}{unit.lower()}"
    return f"{_rounded(plain)}{plain_unit.lower()}"


def _rounded(number: str) -> str:
    value = float(number)
    tenths = round(value * 10)
    if value >= 5 or tenths % 10 in (0, 9):
        return str(int(value + 0.5))
    return f"{tenths / 10:.1f}"


@dataclass(frozen=True)
class Quantization:
    """One model file (or its shards), its tags, and its tags with every layer on the GPU.

    The first of `tags` is created from the file, and the others are copies of it. The first of `gpu_tags` is created
    from that tag.
    """

    type: str
    files: tuple[str, ...]
    tags: tuple[str, ...]
    gpu_tags: tuple[str, ...]
    modelfile: str
    gpu_modelfile: str


@dataclass(frozen=True)
class TagPlan:
    """Everything that is published under one name; `name` has no tag."""

    name: Name
    quantizations: tuple[Quantization, ...]

    def tags(self) -> list[str]:
        """Every tag, in the order of the quantizations."""
        return [tag for quantization in self.quantizations for tag in (*quantization.tags, *quantization.gpu_tags)]


def plan_tags(
    name: Name, files: Sequence[tuple[str, tuple[str, ...]]], *, size: str | None, default: str | None = None
) -> TagPlan:
    """The plan for `files`, pairs of a type ("q4_0") and its file names.

    The default type gets the short tags; without it, the first type of PREFERRED that is present. A tag in `name`
    replaces the size. It leaves `latest` and `gpu` out, so that a second size does not take them over.

    Raises:
        UsageError: a type is listed twice, or no file has the default type.
    """
    types = [kind for kind, _ in files]
    for kind in types:
        if types.count(kind) > 1:
            file_names = ", ".join(names[0] for type_, names in files if type_ == kind)
            raise UsageError(f"{file_names} are all {kind}; publish them one by one, or under tags of an edited --plan")
    if default is not None and default not in types:
        raise UsageError(f"--default {default} is not among the files, which are {', '.join(types)}")
    chosen = default or next((kind for kind in PREFERRED if kind in types), types[0])
    base = name.tag or size
    ordered = sorted(files, key=lambda item: item[0] != chosen)
    return TagPlan(
        Name(name.model, name.namespace, name.host),
        tuple(_quantization(kind, names, base, kind == chosen, whole=name.tag is None) for kind, names in ordered),
    )


def _quantization(kind: str, files: tuple[str, ...], base: str | None, short: bool, whole: bool) -> Quantization:
    # The user may have passed the whole tag: `--name ns/m:4b-q4_0`.
    complete = base is None or base == kind or base.endswith(f"-{kind}")
    long = check_tag((base or kind) if complete else f"{base}-{kind}")
    tags, gpu = [long], [f"{long}-gpu"]
    if short and base:
        tags.append(base)
        gpu.append(f"{base}-gpu")
    if short and whole:
        tags.append("latest")
        gpu.append("gpu")
    file = "Modelfile" if short else f"Modelfile.{kind}"
    return Quantization(kind, files, tuple(dict.fromkeys(tags)), tuple(dict.fromkeys(gpu)), file, f"{file}.gpu")
