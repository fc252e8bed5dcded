"""What the tests of models that see share."""

import pytest

from tests.helpers.mtmd import VARIABLE, find
from tests.helpers.peer import installed_libraries


@pytest.fixture
def libmtmd(monkeypatch: pytest.MonkeyPatch) -> None:
    """llama.cpp with libmtmd; skips the test without it."""
    folder = find()
    if folder is None:
        pytest.skip("llama.cpp was built without libmtmd; python -m tests.helpers.mtmd compiles it")
    # a changed environment gives each command of the test a process of its own
    if folder != installed_libraries():
        monkeypatch.setenv(VARIABLE, str(folder))
