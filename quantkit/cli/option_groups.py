"""Groups of options: a dataclass whose fields are options becomes options of a command, under a heading of the help."""

import copy
import dataclasses
from collections.abc import Callable
from functools import wraps
from inspect import Parameter, get_annotations, signature
from typing import Annotated, Any, get_type_hints

import typer

from quantkit.errors import UsageError


def option(default: Any, help_: str, *flags: str, **settings: Any) -> Any:
    """A field that is an option; its flag is its name unless `flags` are given."""
    return declared(default, typer.Option(*flags, help=help_, **settings))


def declared(default: Any, declaration: Any) -> Any:
    """A field that is an option declared elsewhere."""
    return dataclasses.field(default=default, metadata={"option": declaration})


def grouped(function: Callable[..., None]) -> Callable[..., None]:
    """`function` as a command: each parameter that is a dataclass of options becomes those options."""
    # Python 3.10's get_type_hints loses an Annotated with the default None
    hints = get_annotations(function, eval_str=True)
    groups = {name: _options(hints[name]) for name in signature(function).parameters}

    @wraps(function)
    def command(*positional: Any, **values: Any) -> None:
        for name, options in groups.items():
            if options:
                values[name] = hints[name](**{option.name: values.pop(option.name) for option in options})
        function(*positional, **values)

    flat: list[Parameter] = []
    for name, parameter in signature(function).parameters.items():
        flat += groups[name] or [parameter.replace(annotation=hints[name], kind=Parameter.KEYWORD_ONLY)]
    command.__signature__ = signature(function).replace(parameters=flat)  # type: ignore[attr-defined]
    return command


def refuse_idle(group: Any, needed: str) -> None:
    """Raise UsageError if an option of the group is given, because it has no effect without `needed`."""
    for parameter in _options(type(group)):
        if getattr(group, parameter.name) != parameter.default:
            first = parameter.annotation.__metadata__[0].default  # in an Annotated option the first of its flags
            flag = first if isinstance(first, str) else f"--{parameter.name.replace('_', '-')}"
            raise UsageError(f"{flag} has no effect without {needed}; leave it out, or add {needed}")


def _under(declaration: Any, heading: str) -> Any:
    """A copy of the declaration of an option that the help shows under `heading`."""
    declaration = copy.copy(declaration)
    declaration.rich_help_panel = heading
    return declaration


def _options(group: Any) -> list[Parameter]:
    """The fields of a dataclass of options as parameters; empty for anything else."""
    if not dataclasses.is_dataclass(group):
        return []
    hints, heading = get_type_hints(group), str(vars(group)["heading"])
    return [
        Parameter(
            field.name,
            Parameter.KEYWORD_ONLY,
            default=field.default,
            annotation=Annotated[hints[field.name], _under(field.metadata["option"], heading)],
        )
        for field in dataclasses.fields(group)
    ]
