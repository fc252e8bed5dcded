"""Amounts as text, for messages and tables."""


def human_bytes(size: float) -> str:
    """1.23 GB, 98.4 MB: powers of 1000, three digits."""
    for unit in ("B", "kB", "MB", "GB"):
        if size < 999.5:
            return f"{size:.3g} {unit}" if unit != "B" else f"{size:.0f} B"
        size /= 1000
    return f"{size:.3g} TB"
