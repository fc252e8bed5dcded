"""The section of a card on how its files were made, from quantkit.json alone."""

from collections.abc import Iterable, Mapping
from typing import Any

from quantkit.publish.card.escaping import bullets, code, link, plain
from quantkit.publish.card.facts import CardFacts
from quantkit.units import listed


def made(facts: CardFacts) -> str:
    """A list of the recorded facts; facts without a record are left out."""
    entries = facts.entries
    if not entries:
        return "quantkit.json has no record of how these files were made."
    first = entries[0]
    origin, lines = _mapping(first.get("origin")), []
    versions = _unique(_text(_mapping(entry.get("tool")).get("version")) for entry in entries)
    dates = _unique(_text(entry.get("written"))[:10] for entry in entries)
    lines.append(f"quantkit {plain(listed(versions))}{f', {plain(listed(dates))}' if dates else ''}")
    if source := _text(origin.get("source")):
        revision = f", revision {code(facts.revision)}" if facts.revision else ""
        lines.append(f"source: {plain(source)}{revision}")
        headers = _mapping(origin.get("header_sha256"))
        if not facts.revision and len(headers) == 1:
            name, digest = next(iter(headers.items()))
            lines[-1] += f" ({plain(name)}, sha256 of its header {code(_text(digest))})"
    lines += [f"adapter merged into it: {_adapter(_mapping(adapter))}" for adapter in origin.get("adapters") or ()]
    lines += _unique(_calibration(entry) for entry in entries)
    lines += _unique(_matrix(entry) for entry in entries)
    if options := _options(first):
        lines.append(options)
    lines += _kept(facts)
    lines += _unique(_code(entry) for entry in entries)
    if template := _text(origin.get("chat_template")):
        lines.append(f"chat template: {plain(template)}")
    lines += [f"warning: {plain(warning)}" for warning in _warnings(entries)]
    checks = _unique(_text(check.get("name")) for entry in entries for check in checks_passed(entry))
    if checks:
        lines.append(f"checks passed before the files got their final names: {plain(', '.join(checks))}")
    lines.append(f"sha256 of each file, type and error of each tensor: {link('quantkit.json', 'quantkit.json')}")
    return bullets(lines)


def _adapter(record: Mapping[str, Any]) -> str:
    """An adapter of the origin: its source, revision, kind, scale and the hash of its weights."""
    revision = f", revision {code(_text(record.get('revision')))}" if _text(record.get("revision")) else ""
    scale = record.get("scale")
    times = f", times {scale:g}" if isinstance(scale, int | float) and scale != 1 else ""
    kind = f" ({plain(_text(record.get('kind')))} of rank {_count(record.get('rank'))}{times})"
    return f"{plain(_text(record.get('source')))}{kind}{revision}, sha256 {code(_text(record.get('sha256')))}"


def _warnings(entries: Iterable[Mapping[str, Any]]) -> list[str]:
    return _unique(_text(warning) for entry in entries for warning in entry.get("warnings") or ())


def _calibration(entry: Mapping[str, Any]) -> str:
    record = _mapping(entry.get("calibration")) or _mapping(_mapping(entry.get("origin")).get("calibration"))
    names, hashes = ([_text(text) for text in _list(record.get(key))] for key in ("text", "sha256"))
    if not any(names):
        return ""
    counts = [record.get("samples"), record.get("tokens_per_sample")]
    amount = f", {counts[0]} samples of {counts[1]} tokens" if all(type(count) is int for count in counts) else ""
    chat = ", conversations through the chat template" if record.get("chat_template") is True else ""
    digest = f", sha256 {listed([code(sha256) for sha256 in hashes])}" if any(hashes) else ""
    texts = f"text{'s' if names[1:] else ''}: {listed([plain(name) for name in names])}"
    return f"calibration {texts}{amount}{chat}{digest}"


def _matrix(entry: Mapping[str, Any]) -> str:
    record = _mapping(_mapping(entry.get("options")).get("imatrix"))
    name, digest = _text(record.get("file")), _text(record.get("sha256"))
    return f"importance matrix: {plain(name)}{f', sha256 {code(digest)}' if digest else ''}" if name else ""


def _options(entry: Mapping[str, Any]) -> str:
    """The options of AWQ and GPTQ; the type mix of a GGUF shows its own."""
    options = _mapping(entry.get("options"))
    names = ("bits", "group_size", "symmetric", "damp", "act_order", "static_groups")
    stated = [f"{name.replace('_', ' ')} {_word(options[name])}" for name in names if options.get(name) is not None]
    return f"options: {plain(', '.join(stated))}" if stated else ""


def _code(entry: Mapping[str, Any]) -> str:
    """The Python code of the source that a loader may run."""
    record = _mapping(entry.get("remote_code"))
    names = [code(str(name)) for name in _mapping(record.get("files"))]
    others = [plain(str(name)) for name in record.get("repositories") or ()]
    parts = [f"{', '.join(names)} of the source"] * bool(names) + [f"code of {', '.join(others)}"] * bool(others)
    if not parts:
        return ""
    return (
        f"Python code (auto_map in config.json): {listed(parts)}; a loader without its own class of"
        f" {plain(_text(entry.get('architecture')) or 'this model')} or of its tokenizer runs it, and needs"
        " `trust_remote_code`"
    )


def _kept(facts: CardFacts) -> list[str]:
    """Lines on the tensors of other types than the output's own."""
    if facts.kind == "gguf":
        mixes = []
        for weights in facts.weights:
            mix = _mapping((weights.entry or {}).get("type_mix"))
            counts = [f"{count} {kind}" for kind, count in sorted(mix.items(), key=lambda item: -_count(item[1]))]
            if counts:
                mixes.append(f"{plain(weights.type.upper())}: {plain(', '.join(counts))}")
        return [f"tensors by type: {'; '.join(mixes)}"] if mixes else []
    entry = facts.entries[0]
    kept = [plain(str(name)) for name in entry.get("kept_linears") or ()]
    quantization = facts.description.quantization
    others = [plain(name) for name in quantization.kept] if quantization is not None else []
    count = entry.get("quantized_linears")
    lines = [f"{count} linears quantized"] if type(count) is int else []
    if kept:
        lines.append(
            f"{len(kept)} linears kept in full precision: {', '.join(kept[:8])}{', ...' if len(kept) > 8 else ''}"
        )
    if others:
        lines.append(f"matrices in full precision: {', '.join(others)}")
    return lines


def checks_passed(entry: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """The checks that quantkit.json records as passed."""
    return [check for check in entry.get("checks") or () if _mapping(check).get("status") == "passed"]


def _unique(texts: Iterable[str]) -> list[str]:
    return list(dict.fromkeys(text for text in texts if text))


def _mapping(value: object) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def _text(value: object) -> str:
    return value if isinstance(value, str) else ""


def _list(value: object) -> list[object]:
    return value if isinstance(value, list) else [value]


def _count(value: object) -> int:
    return value if isinstance(value, int) else 0


def _word(value: object) -> str:
    return {True: "yes", False: "no"}.get(value, str(value)) if isinstance(value, bool) else str(value)
