"""These tests make environments of gigabytes and run other people's libraries: they run where they are asked for."""

from pathlib import Path

import pytest


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "peers: other libraries load what quantkit writes, run by make test-peers only")


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    return None if "peers" in config.option.markexpr else True
