"""The refusal of an empty value of an option or an argument, such as that of a shell variable that is not set."""

from collections.abc import Mapping, Sequence
from typing import Any

from quantkit.errors import UsageError

_MAY_BE_EMPTY = frozenset({"--system", "--prompt"})
"""An empty system message replaces the model's; the command itself refuses an empty prompt."""


def refuse_empty(parameters: Sequence[Any], values: Mapping[str, Any]) -> None:
    """Raise UsageError for the first parameter of a command with an empty value; `values` are as they were written."""
    for parameter in parameters:
        value = values.get(parameter.name)
        words = value if isinstance(value, (list, tuple)) else [value]
        if "" not in words or _MAY_BE_EMPTY.intersection(parameter.opts):
            continue
        if parameter.param_type_name == "argument":
            raise UsageError(f"{parameter.metavar.rstrip('.')} is empty; write a value")
        raise UsageError(f"{max(parameter.opts, key=len)} is empty; write a value, or leave the option out")
