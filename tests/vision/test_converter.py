"""The stored figures of projectors are still those of the newest converter, run on checkpoints made now."""

from pathlib import Path

import pytest

from tests.vision.cases import NAMES
from tests.vision.expected import compute, expected

pytestmark = [pytest.mark.full, pytest.mark.timeout(600)]


@pytest.mark.parametrize("name", NAMES)
def test_the_converter_still_writes_the_stored_projectors(name: str, tmp_path: Path) -> None:
    assert compute(name, tmp_path) == expected(name)
