"""Which plots of a report commands draw: each takes a quarter of a second, and the suite writes a hundred reports."""

from collections.abc import Iterator
from contextlib import contextmanager
from unittest.mock import patch

from quantkit.report import plots

_NONE = {"divergence": lambda *_: None, "memory": lambda _: [], "tensor_errors": lambda _: []}
_REAL = {name: getattr(plots, name) for name in _NONE}


@contextmanager
def perplexity_alone() -> Iterator[None]:
    """Reports have the plots of perplexity, and the page with them."""
    with patch.multiple(plots, **_NONE):
        yield


@contextmanager
def every_plot() -> Iterator[None]:
    """Reports have all their plots."""
    with patch.multiple(plots, **_REAL):
        yield
