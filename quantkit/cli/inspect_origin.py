"""The words of `quantkit inspect` for the origin of an output, from its quantkit.json."""

from collections.abc import Mapping
from typing import Any

from quantkit.inspection.description import Description
from quantkit.units import listed


def origin_lines(description: Description) -> list[tuple[str, str]]:
    """(label, text) lines for the origin and the checks in quantkit.json, or for the hub revision."""
    if description.outputs and isinstance(description.origin, Mapping):
        entries = [entry for entry in description.origin.values() if isinstance(entry, dict)]
        return [("origin", _made(entries[0]))] if entries else []
    if description.origin is not None and "origin" in description.origin:
        return [("origin", _made(description.origin)), ("checks", _checks(description.origin))]
    return [("revision", description.revision)] if description.revision else []


def _made(entry: Mapping[str, Any]) -> str:
    origin = entry.get("origin") if isinstance(entry.get("origin"), dict) else {}
    tool = entry.get("tool") if isinstance(entry.get("tool"), dict) else {}
    revision = f"@{origin['revision']}" if origin and origin.get("revision") else ""
    words = [f"made from {(origin or {}).get('source', '?')}{revision}"]
    if origin and origin.get("base"):
        words[0] += f" with the config of {origin['base']}"
    adapters = (origin or {}).get("adapters") or []
    if str(entry.get("type")).endswith(" adapter"):
        words[0] = f"adapter {adapter_words(adapters[0])} for {(origin or {}).get('source', '?')}{revision}, written"
    elif adapters:
        words[0] += " merged with " + ", ".join(adapter_words(adapter) for adapter in adapters)
    words.append(f"by {(tool or {}).get('name', '?')} {(tool or {}).get('version', '')}".rstrip())
    if entry.get("written"):
        words.append(f"on {entry['written']}")
    text = entry.get("calibration")
    if isinstance(text, dict):
        count, length = text.get("samples", "?"), text.get("tokens_per_sample", "?")
        names = text.get("text", "?")
        name = listed(map(str, names)) if isinstance(names, list) else names
        return f"{' '.join(words)}, calibrated on {name} ({count} samples of {length} tokens)"
    options = entry.get("options") if isinstance(entry.get("options"), dict) else {}
    if "quantized_linears" in entry:
        options = {}  # those of a folder are facts of its format, which other lines show
    given = _option_words(options or {})
    return " ".join(words) + (f", with {', '.join(given)}" if given else "")


def _option_words(options: Mapping[str, Any]) -> list[str]:
    """The options of a GGUF that are not the default, as they were written on the command line."""
    names = {
        "pure": "--pure",
        "leave_output_tensor": "--leave-output-tensor",
        "output_type": "--output-type",
        "embedding_type": "--embedding-type",
        "split_max_size": "--split-max-size",
        "solver": "--solver",
    }
    words = [
        option if value is True else f"{option} {value}"
        for name, option in names.items()
        if (value := options.get(name)) and (name, value) != ("solver", "llama.cpp")
    ]
    mixed = options.get("tensor_types")
    pairs = mixed if isinstance(mixed, list) else []
    words += [f"--tensor-type {pair[0]}={pair[1]}" for pair in pairs if isinstance(pair, list) and len(pair) == 2]
    imatrix = options.get("imatrix")
    if isinstance(imatrix, Mapping):
        words.append(f"--imatrix {imatrix['file']}" if imatrix.get("file") else "an importance matrix")
    return words


def adapter_words(adapter: Mapping[str, Any]) -> str:
    """An adapter of a record: its source, kind and scale."""
    revision = f"@{adapter['revision']}" if adapter.get("revision") else ""
    scale = adapter.get("scale", 1)
    times = "" if scale == 1 else f", times {scale:g}"
    kind = f"{adapter.get('kind', 'LoRA')} of rank {adapter.get('rank', '?')}{times}"
    return f"{adapter.get('source', '?')}{revision} ({kind})"


def _checks(entry: Mapping[str, Any]) -> str:
    checks = entry.get("checks")
    if not isinstance(checks, list):
        return ""
    return "; ".join(f"{c.get('name')} {c.get('status')}" for c in checks if isinstance(c, dict))
