"""What the user is told of the Python code that a source's configs name (auto_map)."""

from collections.abc import Mapping, Sequence
from typing import Any

from quantkit.checkpoint.remote_code import RemoteCode
from quantkit.units import listed

_SHOWN = 3


def code_notes(code: RemoteCode, config: Mapping[str, Any]) -> tuple[str, ...]:
    """A sentence on the code that a folder has or names; none without any. `config`: the folder's config.json."""
    if not code.files and not code.repositories:
        return ()
    name = (config.get("architectures") or ["this model"])[0]
    parts = []
    if code.files:
        plural = "s" if len(code.files) > 1 else ""
        parts.append(f"gets {len(code.files)} Python file{plural} of the source ({_listed(list(code.files))})")
    if code.repositories:
        parts.append(f"names code of {_listed(code.repositories)}")
    return (
        f"the folder {listed(parts)}, which quantkit does not run; a loader without its own class of {name} or of"
        " its tokenizer runs it, and needs trust_remote_code",
    )


def code_warnings(code: RemoteCode) -> tuple[str, ...]:
    """A sentence on the code that configs name and that cannot be copied; none if all is there."""
    if not code.missing:
        return ()
    return (
        f"the source has no {_listed(code.missing)}, which its code or auto_map names; copy what is missing into the"
        " folder if a loader needs it",
    )


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more
