"""The part of a card that says how its files were made: what quantkit.json records, and nothing else."""

from collections.abc import Mapping
from typing import Any

from quantkit.publish.card.escaping import bullets, code, link, listed, plain
from quantkit.publish.card.facts import CardFacts


def made(facts: CardFacts) -> str:
    """How it was made, by quantkit.json; what is not recorded is not said."""
    entries = facts.entries
    if not entries:
        return "There is no record of how these files were made (quantkit.json)."
    first = entries[0]
    origin, said = _mapping(first.get("origin")), []
    versions = _each(_text(_mapping(entry.get("tool")).get("version")) for entry in entries)
    dates = _each(_text(entry.get("written"))[:10] for entry in entries)
    said.append(f"quantkit {plain(listed(versions))}{f', {plain(listed(dates))}' if dates else ''}")
    if source := _text(origin.get("source")):
        revision = f", revision {code(facts.revision)}" if facts.revision else ""
        said.append(f"source: {plain(source)}{revision}")
        headers = _mapping(origin.get("header_sha256"))
        if not facts.revision and len(headers) == 1:
            name, digest = next(iter(headers.items()))
            said[-1] += f" ({plain(name)}, sha256 of its header {code(_text(digest))})"
    said += _each(_calibration(entry) for entry in entries)
    said += _each(_matrix(entry) for entry in entries)
    if options := _options(first):
        said.append(options)
    said += _kept(facts)
    if template := _text(origin.get("chat_template")):
        said.append(f"chat template: {plain(template)}")
    said += [f"noted: {plain(each)}" for each in _each(_text(w) for e in entries for w in e.get("warnings") or ())]
    checks = _each(_text(check.get("name")) for entry in entries for check in checks_passed(entry))
    if checks:
        said.append(f"checks passed before the files got their names: {plain(', '.join(checks))}")
    said.append(
        f"sha256 of every file, the type and the error of every tensor: {link('quantkit.json', 'quantkit.json')}"
    )
    return bullets(said)


def _calibration(entry: Mapping[str, Any]) -> str:
    found = _mapping(entry.get("calibration")) or _mapping(_mapping(entry.get("origin")).get("calibration"))
    name = _text(found.get("text"))
    if not name:
        return ""
    counts = [found.get("samples"), found.get("tokens_per_sample")]
    amount = f", {counts[0]} samples of {counts[1]} tokens" if all(type(each) is int for each in counts) else ""
    chat = ", conversations through the chat template" if found.get("chat_template") is True else ""
    digest = f", sha256 {code(_text(found.get('sha256')))}" if _text(found.get("sha256")) else ""
    return f"calibration text: {plain(name)}{amount}{chat}{digest}"


def _matrix(entry: Mapping[str, Any]) -> str:
    found = _mapping(_mapping(entry.get("options")).get("imatrix"))
    name, digest = _text(found.get("file")), _text(found.get("sha256"))
    return f"importance matrix: {plain(name)}{f', sha256 {code(digest)}' if digest else ''}" if name else ""


def _options(entry: Mapping[str, Any]) -> str:
    """Those of AWQ and GPTQ; a GGUF's mix of types says its own."""
    found = _mapping(entry.get("options"))
    names = ("bits", "group_size", "symmetric", "damp", "act_order", "static_groups")
    said = [f"{name.replace('_', ' ')} {_word(found[name])}" for name in names if found.get(name) is not None]
    return f"options: {plain(', '.join(said))}" if said else ""


def _kept(facts: CardFacts) -> list[str]:
    """What is not in the type's own few bits."""
    if facts.kind == "gguf":
        mixes = []
        for each in facts.weights:
            mix = _mapping((each.entry or {}).get("type_mix"))
            counts = [f"{count} {kind}" for kind, count in sorted(mix.items(), key=lambda item: -_count(item[1]))]
            if counts:
                mixes.append(f"{plain(each.type.upper())}: {plain(', '.join(counts))}")
        return [f"tensors by type: {'; '.join(mixes)}"] if mixes else []
    entry = facts.entries[0]
    kept = [plain(str(name)) for name in entry.get("kept_linears") or ()]
    quantization = facts.description.quantization
    others = [plain(name) for name in quantization.kept] if quantization is not None else []
    count = entry.get("quantized_linears")
    said = [f"{count} linears quantized"] if type(count) is int else []
    if kept:
        said.append(
            f"{len(kept)} linears kept in full precision: {', '.join(kept[:8])}{', ...' if len(kept) > 8 else ''}"
        )
    if others:
        said.append(f"matrices in full precision: {', '.join(others)}")
    return said


def checks_passed(entry: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """The checks of quantkit.json that passed."""
    return [check for check in entry.get("checks") or () if _mapping(check).get("status") == "passed"]


def _each(found: Any) -> list[str]:
    return list(dict.fromkeys(each for each in found if each))


def _mapping(found: object) -> Mapping[str, Any]:
    return found if isinstance(found, Mapping) else {}


def _text(found: object) -> str:
    return found if isinstance(found, str) else ""


def _count(found: object) -> int:
    return found if isinstance(found, int) else 0


def _word(value: object) -> str:
    return {True: "yes", False: "no"}.get(value, str(value)) if isinstance(value, bool) else str(value)
