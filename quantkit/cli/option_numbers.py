"""The sentence on a value of an option that is not a number, or not one of its range."""

from typing import Any

_INTEGERS = ("int_parsing", "int_from_float", "int_parsing_size", "int_type")
_FLOATS = ("float_parsing", "float_type", "finite_number")
_RANGES = ("greater_than", "greater_than_equal", "less_than", "less_than_equal")


def wrong_number(error: Any) -> str | None:
    """The sentence for typer's error of a wrong value, whose cause is pydantic's; None for an error of another kind."""
    details: list[dict[str, Any]] = getattr(error.__cause__, "errors", list)()
    if error.param is None or not details or details[0]["type"] not in (*_INTEGERS, *_FLOATS, *_RANGES):
        return None
    kind, option = details[0]["type"], error.param
    annotation = str(getattr(getattr(option, "type_descriptor", None), "annotation", ""))
    is_whole = kind in _INTEGERS or (kind in _RANGES and "int" in annotation)
    name = max(option.opts, key=len)
    return f"{name} {details[0]['input']!r} is not {_number(is_whole=is_whole, least=option.min, most=option.max)}"


def _number(*, is_whole: bool, least: float | None, most: float | None) -> str:
    """ "a whole number from 1 to 64"."""
    what = "a whole number" if is_whole else "a number"
    if least is None:
        return what if most is None else f"{what} up to {_plain(most)}"
    return f"{what} of at least {_plain(least)}" if most is None else f"{what} from {_plain(least)} to {_plain(most)}"


def _plain(number: float) -> str:
    return str(int(number)) if number == int(number) else str(number)
