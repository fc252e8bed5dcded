"""Conversions that stop at a layer, to be resumed."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from quantkit.errors import PassingError
from quantkit.stream.stream import Stream


@contextmanager
def stops_at_layer(number: int) -> Iterator[None]:
    """Within it, layer `number` of a calibration fails as a lost disk does, before any of its work."""
    run = Stream.layer

    def layer(stream: Stream, at: int, *rest: Any) -> None:
        if at == number:
            raise PassingError("the disk is away")
        run(stream, at, *rest)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(Stream, "layer", layer)
        yield
