"""Amounts and lists as text, for messages and tables."""

from collections.abc import Iterable


def human_bytes(size: float) -> str:
    """1.23 GB, 98.4 MB: powers of 1000, three digits."""
    for unit in ("B", "kB", "MB", "GB"):
        if size < 999.5:
            return f"{size:.3g} {unit}" if unit != "B" else f"{size:.0f} B"
        size /= 1000
    return f"{size:.3g} TB"


def size_argument(size: int, *, up: bool = False) -> str:
    """A size as options take it (8.89M): rounded down, or `up`, to 10 kB, and from 100 MB on to 1 MB."""
    step = 10**6 if size >= 10**8 else 10**4
    return f"{(-(-size // step) if up else size // step) * step / 1e6:.10g}M"


def listed(parts: Iterable[str]) -> str:
    """ "a, b and c" """
    *others, last = [*parts] or [""]
    return f"{', '.join(others)} and {last}" if others else last
