"""Formats figures: as many digits as their errors allow, decimal sizes, an en dash for an absent figure."""

import math

from quantkit.measurement.document import Value

ABSENT = "–"
_MINUS = "−"


def plus_minus(value: Value | None, *, decimals: int = 0, most: int = 6, sign: bool = False) -> str:
    """`value` and its error, to two digits of the error but at least `decimals` and at most `most` decimals."""
    if value is None:
        return ABSENT
    if value.error is None:
        return significant(value.value, sign=sign)
    if value.error <= 0:
        return f"{significant(value.value, sign=sign)} ± 0"
    digits = min(max(decimals, 1 - math.floor(math.log10(value.error))), most)
    if value.error < 0.5 * 10**-digits:
        return f"{_fixed(value.value, digits, sign)} ± <{10**-digits:.{digits}f}"
    return f"{_fixed(value.value, digits, sign)} ± {value.error:,.{digits}f}"


def percent(value: Value | None, *, sign: bool = False, most: int = 4) -> str:
    """A fraction of 1 as a percentage with its error."""
    if value is None:
        return ABSENT
    error = None if value.error is None else value.error * 100
    text = plus_minus(Value(value.value * 100, error), sign=sign, decimals=1, most=most)
    return f"{text}%" if "±" not in text else text.replace(" ±", "% ±") + "%"


def change(ratio: Value | None) -> str:
    """A ratio to the reference as a change: 1.202 ± 0.027 is +20.2% ± 2.7%."""
    return percent(None if ratio is None else Value(ratio.value - 1, ratio.error), sign=True)


def significant(value: float | None, digits: int = 4, *, sign: bool = False) -> str:
    """A figure without an error, to `digits` significant ones."""
    if value is None:
        return ABSENT
    if value == 0:
        return "0"
    magnitude = math.floor(math.log10(abs(value)))
    if magnitude < -6 or magnitude > 9:
        return f"{value:{'+' if sign else ''}.{digits - 1}e}".replace("-", _MINUS, 1 if value < 0 else 0)
    return _fixed(value, max(0, digits - 1 - magnitude), sign)


def size(count: float | None) -> str:
    """Bytes in decimal units, as the hub shows them: 91.7 MB."""
    if count is None:
        return ABSENT
    if count == 0:
        return "0"
    scaled, unit = count, "bytes"
    for bigger in ("kB", "MB", "GB", "TB"):
        if scaled < 999.5:
            break
        scaled, unit = scaled / 1000, bigger
    decimals = 0 if unit == "bytes" or scaled >= 99.95 else 1 if scaled >= 9.995 else 2
    return f"{scaled:.{decimals}f} {unit}"


def tick(value: float) -> str:
    """A round value on an axis."""
    if value != 0 and not 1e-9 < abs(value) < 1e7:
        return f"{value:g}"
    return f"{value:,.10f}".rstrip("0").rstrip(".")


def whole(count: int | None) -> str:
    """An integer with thousands separators."""
    return ABSENT if count is None else f"{count:,}"


def smaller(count: float | None, reference: float | None) -> str | None:
    """How much smaller than the reference: "66% smaller"; None if a size is unknown."""
    if not count or not reference:
        return None
    part = 1 - count / reference
    if abs(part) < 0.005:
        return "as large as the reference"
    if part < 0 and count > 2 * reference:
        return f"{count / reference:.1f} times the size"
    return f"{abs(part):.0%} {'smaller' if part > 0 else 'larger'}"


def duration(seconds: float | None) -> str:
    """Seconds, minutes or hours in words."""
    if seconds is None:
        return ABSENT
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60:02d} min"


def _fixed(value: float, decimals: int, sign: bool) -> str:
    text = f"{value:,.{decimals}f}"
    if text.lstrip("-").strip("0.,") == "":
        return text.lstrip("-")
    if value < 0:
        return _MINUS + text.lstrip("-")
    return f"+{text}" if sign else text
