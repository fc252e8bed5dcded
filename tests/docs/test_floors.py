"""The lowest versions that `make audit` looks up are those of pyproject.toml."""

import pytest

from tools.floors import PROJECT, floors


def test_every_dependency_states_a_lowest_version() -> None:
    lines = list(floors(PROJECT.read_text("utf-8")))
    assert "jinja2==3.1.6" in lines
    assert all(line.count("==") == 1 for line in lines)
    assert not any(line.startswith(("pytest", "ruff")) for line in lines)


def test_a_dependency_without_a_lowest_version_is_an_error() -> None:
    with pytest.raises(ValueError, match="numpy states no lowest version"):
        list(floors('[project]\ndependencies = ["numpy"]'))
