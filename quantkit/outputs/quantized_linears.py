"""Which linears of a folder are quantized, and whether they fit its format."""

import fnmatch
import re
from collections.abc import Container, Iterable, Sequence

from quantkit.errors import UnsupportedError, UsageError
from quantkit.forward.linears import Linear
from quantkit.packed.formats import FolderRequest
from quantkit.packed.registry import FORMATS
from quantkit.quant.rounding import check_group

_REGULAR = re.compile(r"[\\^$|()+]")


def skipped_linears(linears: Sequence[Linear], patterns: Sequence[str]) -> dict[str, None]:
    """The names of the linears that are not quantized, in order. Raises UsageError if a pattern matches nothing."""
    for pattern in patterns:
        if not any(fnmatch.fnmatchcase(linear.name, _anywhere(pattern)) for linear in linears):
            kind = "; a pattern with *, ? or [ matches the whole name, and a regular expression is not one"
            raise UsageError(
                f"--skip {pattern} matches no linear of this model; a linear name is for example {linears[0].name}"
                f"{kind if _is_whole(pattern) or _REGULAR.search(pattern) else ''}"
            )
    return {linear.name: None for linear in linears if linear.kept or _is_skipped(linear.name, patterns)}


def require_fit(
    linears: Iterable[Linear], last: Container[str], request: FolderRequest, stacks: Container[str]
) -> None:
    """Raises UnsupportedError for a linear that does not fit the format. `last`: the last linears of an input."""
    folder_format, checked = FORMATS[request.method], set[tuple[int, int, bool, bool]]()
    for linear in linears:
        kind = (linear.n_in, linear.n_out, linear.form.turned, linear.name in last)
        if kind in checked:
            continue
        checked.add(kind)
        if folder_format.calibrated:
            check_group(linear.n_in, request.grid, linear.name)
        elif linear.form.turned:
            raise UnsupportedError(
                f"{linear.name} is stored transposed, and no loader of {folder_format.label} reads such a model;"
                " convert it to GGUF"
            )
        reason = folder_format.why_not(request.grid, linear.n_in, linear.n_out, last=linear.name in last)
        if reason:
            remedy = "choose another --group-size or type" if linear.name in stacks else f"add --skip {linear.name}"
            raise UnsupportedError(f"{linear.name} does not fit {folder_format.label}: {reason}; {remedy}")


def _is_skipped(name: str, patterns: Sequence[str]) -> bool:
    return any(fnmatch.fnmatchcase(name, _anywhere(pattern)) for pattern in patterns)


def _anywhere(pattern: str) -> str:
    """A plain word matches any part of a name, as in modules_to_not_convert."""
    return pattern if _is_whole(pattern) else f"*{pattern}*"


def _is_whole(pattern: str) -> bool:
    return any(letter in pattern for letter in "*?[")
