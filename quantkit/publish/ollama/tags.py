"""Ollama's names and the tags a model is published under: `4b`, `4b-q4_0`, `4b-gpu`, `latest`, `gpu`."""

import re
from collections.abc import Sequence
from dataclasses import dataclass

from quantkit.errors import UsageError

PREFERRED = ("q4_0", "q4_k_m")
"""What the short tags stand for where nobody says otherwise: the first of these that is there, else the first given."""

_PART = re.compile(r"[a-z0-9_][a-z0-9._-]*")
_MAX_PART = 80
_KINDS = ("namespace", "model", "tag")
_LABEL = re.compile(r"(\d+)x([\d.]+)([KMBT])|([\d.]+)([KMBT])", re.IGNORECASE)


@dataclass(frozen=True)
class Name:
    """`HOST/NAMESPACE/MODEL:TAG`, of which only the model is needed."""

    model: str
    namespace: str | None = None
    host: str | None = None
    tag: str | None = None

    def __str__(self) -> str:
        path = "/".join(part for part in (self.host, self.namespace, self.model) if part)
        return f"{path}:{self.tag}" if self.tag else path

    def tagged(self, tag: str | None) -> str:
        """The name with another tag; None for none."""
        return str(Name(self.model, self.namespace, self.host, tag))


def parse_name(text: str) -> Name:
    """The parts of a name as the user types it.

    The rules are those of Ollama's types/model/name.go (letters, digits, `_`, `-`, `.`; up to 80 of them; no dot in a
    namespace), and two of its registry's: lower case, and no two dots in a row.

    Raises:
        UsageError: a part is missing or has a character it cannot have.
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
        raise UsageError(f"the name {text!r} starts with {host!r}, which is not a host")
    for kind, part in zip(_KINDS, (namespace, model, tag if colon else None), strict=True):
        if part is not None:
            _check_part(kind, part, text)
    return Name(model, namespace, host, tag if colon else None)


def check_tag(tag: str) -> str:
    """The tag itself; raises UsageError where Ollama would not take it."""
    _check_part("tag", tag, tag)
    return tag


def _check_part(kind: str, part: str, text: str) -> None:
    if part != part.lower():
        raise UsageError(
            f"the {kind} {part!r} has capital letters, which ollama.com does not keep; write {text.lower()}"
        )
    if not part or not _PART.fullmatch(part) or ".." in part or (kind == "namespace" and "." in part):
        why = "letters, digits, - and _" if kind == "namespace" else "letters, digits, single dots, - and _"
        raise UsageError(f"the {kind} of the name {text!r} is {part!r}; it may have {why}, and starts with no - or dot")
    if len(part) > _MAX_PART:
        raise UsageError(f"the {kind} {part!r} has {len(part)} characters; Ollama takes up to {_MAX_PART}")


def size_tag(label: str | None) -> str | None:
    """A GGUF's size label as publishers tag it: "3.9B" is `4b`, "1.8B" `1.8b`, "135M" `135m`, "8x7B" `8x7b`.

    From 5 on a size is whole, below it keeps one decimal, of which .9 counts up. None for a label of another kind.
    """
    if label is None:
        return None
    match = _LABEL.match(label.strip())
    if not match:
        return None
    experts, each, unit, plain, plain_unit = match.groups()
    if experts:
        return f"{experts}x{_rounded(each)}{unit.lower()}"
    return f"{_rounded(plain)}{plain_unit.lower()}"


def _rounded(number: str) -> str:
    value = float(number)
    tenths = round(value * 10)
    if value >= 5 or tenths % 10 in (0, 9):
        return str(int(value + 0.5))
    return f"{tenths / 10:.1f}"


@dataclass(frozen=True)
class Quantization:
    """One model file (or its shards), the tags that get it, and those that get it with every layer on the GPU.

    The first of `tags` is made from the file, the others are copies of it; `gpu_tags` likewise, made from that tag.
    """

    type: str
    files: tuple[str, ...]
    tags: tuple[str, ...]
    gpu_tags: tuple[str, ...]
    modelfile: str
    gpu_modelfile: str


@dataclass(frozen=True)
class TagPlan:
    """Everything that is published under one name; `name` carries no tag."""

    name: Name
    quantizations: tuple[Quantization, ...]

    def tags(self) -> list[str]:
        return [tag for each in self.quantizations for tag in (*each.tags, *each.gpu_tags)]


def plan_tags(
    name: Name, found: Sequence[tuple[str, tuple[str, ...]]], *, size: str | None, default: str | None = None
) -> TagPlan:
    """The plan for `found`, pairs of a type ("q4_0") and its file names.

    The default type, else the first of PREFERRED that is there, gets the short tags. A tag in `name` stands where the
    size would and leaves `latest` and `gpu` alone, so that a second size does not take them over.

    Raises:
        UsageError: a type stands twice, or the default one is not there.
    """
    types = [kind for kind, _ in found]
    for kind in types:
        if types.count(kind) > 1:
            files = ", ".join(file for each, files in found if each == kind for file in files[:1])
            raise UsageError(f"{files} are all {kind}; publish them one by one, or under tags of an edited --plan")
    if default is not None and default not in types:
        raise UsageError(f"--default {default} is not among the files, which are {', '.join(types)}")
    chosen = default or next((kind for kind in PREFERRED if kind in types), types[0])
    base = name.tag or size
    ordered = sorted(found, key=lambda item: item[0] != chosen)
    return TagPlan(
        Name(name.model, name.namespace, name.host),
        tuple(_quantization(kind, files, base, kind == chosen, whole=name.tag is None) for kind, files in ordered),
    )


def _quantization(kind: str, files: tuple[str, ...], base: str | None, short: bool, whole: bool) -> Quantization:
    # A publisher may have named the whole tag: `--name ns/m:4b-q4_0`.
    named = base is None or base == kind or base.endswith(f"-{kind}")
    long = check_tag((base or kind) if named else f"{base}-{kind}")
    tags, gpu = [long], [f"{long}-gpu"]
    if short and base:
        tags.append(base)
        gpu.append(f"{base}-gpu")
    if short and whole:
        tags.append("latest")
        gpu.append("gpu")
    file = "Modelfile" if short else f"Modelfile.{kind}"
    return Quantization(kind, files, tuple(dict.fromkeys(tags)), tuple(dict.fromkeys(gpu)), file, f"{file}.gpu")
