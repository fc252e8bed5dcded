"""What was compared in this run, for the line that the test session prints at its end."""

from collections import Counter
from typing import Any

from quantkit.tokenizer import Difference

compared: dict[str, tuple[tuple[str, ...], int]] = {}
reasons: Counter[str] = Counter()


def record(tokenizer: str, families: tuple[str, ...], texts: int, different: list[Difference]) -> None:
    """Count one tokenizer, after its comparison; every difference must have its reason by now."""
    compared[tokenizer] = (families, texts)
    reasons.update(str(difference.reason) for difference in different)


def packed() -> dict[str, Any]:
    """What this process counted, as plain data for the process that prints."""
    return {
        "compared": {name: [list(families), texts] for name, (families, texts) in compared.items()},
        "reasons": dict(reasons),
    }


def add(counted: dict[str, Any] | None) -> None:
    """Add what a worker counted."""
    if counted:
        compared.update({name: (tuple(families), texts) for name, (families, texts) in counted["compared"].items()})
        reasons.update(counted["reasons"])


def summary() -> list[str]:
    """The line, and one line for each reason for which texts differ; nothing when nothing was compared."""
    if not compared:
        return []
    families = {family for names, _ in compared.values() for family in names}
    texts = sum(count for _, count in compared.values())
    lines = [
        f"token ids: llama.cpp's equal the tokenizer's own for {len(compared)} tokenizers of {len(families)} families "
        f"on {texts - reasons.total()} of {texts} texts"
    ]
    return lines + [f"  differing for a reason: {count}: {reason}" for reason, count in reasons.most_common()]
