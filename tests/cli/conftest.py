"""Checkpoints that tests of several commands share."""

from pathlib import Path

import pytest

from tests.helpers.tiny import tiny_llama


@pytest.fixture(scope="module")
def narrow(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_llama(tmp_path_factory.mktemp("narrow") / "model", variant="llama3", hidden=64, intermediate=96)


@pytest.fixture(scope="module")
def narrow_mixture(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("narrow") / "mixture"
    return tiny_llama(folder, variant="mixtral", hidden=64, intermediate=96)
