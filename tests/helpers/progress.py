"""A Progress that records what it receives."""

from collections.abc import Callable


class Recorded:
    """`reports`: (units done, total) of the stage at each advance; `on_report` is called with them."""

    def __init__(self, on_report: Callable[[int, int], object] = lambda done, total: None) -> None:
        self.stages: list[str] = []
        self.items: list[str] = []
        self.amounts: list[int] = []
        self.reports: list[tuple[int, int]] = []
        self._done = self._total = 0
        self._on_report = on_report

    def start(self, stage: str, total: int = 0) -> None:
        self.stages.append(stage)
        self._done, self._total = 0, total

    def advance(self, amount: int = 1, item: str = "") -> None:
        self._done += amount
        self.amounts.append(amount)
        self.items.append(item)
        self.reports.append((self._done, self._total))
        self._on_report(self._done, self._total)
