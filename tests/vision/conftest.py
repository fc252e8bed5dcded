"""What the tests of models that see share."""

import pytest

from tests.helpers.mtmd import VARIABLE, find


@pytest.fixture
def libmtmd(monkeypatch: pytest.MonkeyPatch) -> None:
    """llama.cpp with libmtmd; skips the test without it."""
    folder = find()
    if folder is None:
        pytest.skip("llama.cpp was built without libmtmd; python -m tests.helpers.mtmd compiles it")
    monkeypatch.setenv(VARIABLE, str(folder))
