"""Real inputs for the tests, from the package index; a test that asks for one is skipped where it cannot be had.

Fixtures, for a conftest's `pytest_plugins = ["tests.helpers.real"]`; the functions can also be called directly.
"""

from pathlib import Path

import pytest

from demo.inputs import InputsUnavailable
from demo.smollm2 import smollm2_checkpoint
from demo.wikitext import wikitext2_test


def smollm2_or_skip() -> Path:
    """SmolLM2-135M-Instruct as a Hugging Face checkpoint: bf16, tied, 576 / 1536, read-only for every test."""
    try:
        return smollm2_checkpoint()
    except InputsUnavailable as error:
        pytest.skip(str(error))


def wikitext2_or_skip() -> str:
    """The text of WikiText-2's raw test split."""
    try:
        return wikitext2_test()
    except InputsUnavailable as error:
        pytest.skip(str(error))


@pytest.fixture(scope="session")
def smollm2() -> Path:
    return smollm2_or_skip()


@pytest.fixture(scope="session")
def wikitext2() -> str:
    return wikitext2_or_skip()
