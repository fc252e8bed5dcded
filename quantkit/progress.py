"""Progress of long work: one protocol for every room. The command line shows it; elsewhere it is silent."""

from typing import Protocol


class Progress(Protocol):
    """Receives how far the work is. Every method may be called from any thread."""

    def start(self, stage: str, total: int = 0) -> None:
        """A stage begins, for example "converting"; `total` units of work, or 0 where they cannot be counted."""

    def advance(self, amount: int = 1, item: str = "") -> None:
        """`amount` more units of the current stage are done; `item` names the tensor, layer or file at work."""


class _Silent:
    def start(self, stage: str, total: int = 0) -> None:
        pass

    def advance(self, amount: int = 1, item: str = "") -> None:
        pass


SILENT: Progress = _Silent()
"""A Progress that shows nothing."""
