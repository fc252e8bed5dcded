"""A Progress that records its calls."""


class Recorded:
    """`stages`: (stage, total) of every start; `advances`: (amount, item) of every advance."""

    def __init__(self) -> None:
        self.stages: list[tuple[str, int]] = []
        self.advances: list[tuple[int, str]] = []

    def start(self, stage: str, total: int = 0) -> None:
        self.stages.append((stage, total))

    def advance(self, amount: int = 1, item: str = "") -> None:
        self.advances.append((amount, item))
