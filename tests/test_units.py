"""Lists in messages read as a sentence does."""

import pytest

from quantkit.units import listed


@pytest.mark.parametrize(
    ("parts", "text"), [([], ""), (["a"], "a"), (["a", "b"], "a and b"), (["a", "b", "c"], "a, b and c")]
)
def test_a_list_has_commas_and_one_and(parts: list[str], text: str) -> None:
    assert listed(parts) == listed(iter(parts)) == text
